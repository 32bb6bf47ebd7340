"""Every wrong use gives one line on standard error and exit code 2, and writes nothing."""

import re

import numpy as np
import pytest
import torch

from bench.cli import main
from tests.end_to_end.command import bench_process

ATAS = ("run", "--defense", "atas")


@pytest.fixture
def folder(tmp_path):
    """A folder with a few files to get wrong."""
    x, y = np.zeros((4, 6, 6), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "good.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "broken.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    np.savez(tmp_path / "keys.npz", x_train=x)
    torch.save({"a.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    torch.save({"a.weight": torch.zeros(3, 3)}.__class__, tmp_path / "pickle.pt")
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "twice.py").write_text("from bench.core import registry\n@registry.defense('atas')\nclass A: ...\n")
    (tmp_path / "bounded.py").write_text(
        "from torch import nn\ndef build(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes), nn.Softmax(1), nn.Linear(classes, classes))\n"
    )
    (tmp_path / "models.py").write_text(
        "from torch import nn\ndef nothing():\n    return nn.Identity()\n"
        "def positional(shape, classes, width=3):\n    return nn.Identity()\n"
    )
    (tmp_path / "failing.py").write_text(
        "from bench.api import *\n@registry.defense('failing')\nclass Failing(Defense[TrainingConfig]):\n"
        "    config_class = TrainingConfig\n    def train_step(self, batch, trainer):\n        raise OSError('why')\n"
    )
    (tmp_path / "empty.py").touch()
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "data").mkdir()
    return tmp_path


# case -> the command, and a fact that the error states: the wrong value, or what is allowed
WRONG = {
    "unknown defense": (("run", "--defense", "atsa"), "'atas'"),
    "line break in a list": ((*ATAS, "--attacks", "fgsm\npgd-1"), "line break"),
    "options of a file": ((*ATAS, "--dataset", "good.npz:train=2", "--eps", "0.1", "--model", "cnn"), "in good.npz"),
    "last batch too small": ((*ATAS, "--set", "batch_size=478", "--set", "norm_shares=2"), "batch_size"),
    "unknown attack": ((*ATAS, "--attacks", "pdg-10"), "'pgd'"),
    "unknown attack option": ((*ATAS, "--attacks", "pgd:stepz=3"), "'stepz'"),
    "attack twice": ((*ATAS, "--attacks", "pgd-10,pgd"), "'pgd'"),
    "unknown data set": ((*ATAS, "--dataset", "digit", "--eps", "0.1", "--model", "cnn"), "'digits'"),
    "unknown suite": ((*ATAS, "--suite", "digts"), "'digits'"),
    "unknown model": ((*ATAS, "--model", "cn"), "'cn'"),
    "'overhead'": (("study", "overhed"), "'overhead'"),
    "unknown kind": (("list", "defences"), "'defenses'"),
    "name of several kinds": (("list", "digits"), "bench list datasets digits"),
    "seeds that are no numbers": ((*ATAS, "--seeds", "0,x"), "separated by commas"),
    "range of seeds backwards": ((*ATAS, "--seeds", "4-0"), "0-4, not '4-0'"),
    "a seed twice": ((*ATAS, "--seeds", "0-2,1"), "names seed 1 twice"),
    "weights of a folder without": (("eval", "--checkpoint", "data"), "data has no weights.safetensors"),
    "unknown command": (("rum",), "'run'"),
    "unknown flag": ((*ATAS, "--atacks", "pgd"), "--attacks"),
    "unknown setting": ((*ATAS, "--set", "epoch=3"), "'epochs'"),
    "setting of the wrong type": ((*ATAS, "--set", "epochs=many"), "'many'"),
    "setting out of range": ((*ATAS, "--set", "momentum=1.5"), "in [0, 1)"),
    "eps in grey levels": ((*ATAS, "--eps", "8"), "8/255"),
    "eps negative": ((*ATAS, "--eps=-0.1"), "-0.1"),
    "eps not a number": ((*ATAS, "--eps", "big"), "'big'"),
    "eps not finite": ((*ATAS, "--eps", "nan"), "'nan'"),
    "eps with a hole": ((*ATAS, "--eps", "0.1,,0.2"), "--eps"),
    "second eps in grey levels": ((*ATAS, "--eps", "0.1,8"), "8/255"),
    "attack under another norm without eps": ((*ATAS, "--attacks", "pgd-10:norm=L2"), "pgd-10:norm=L2:eps="),
    "attack under an unknown norm": ((*ATAS, "--attacks", "pgd-10:norm=L3:eps=1"), "Linf, L2, L1"),
    "attack with an eps out of range": ((*ATAS, "--attacks", "pgd-10:eps=3"), "3/255"),
    "transfer from nowhere": ((*ATAS, "--attacks", "transfer"), "from=RUN"),
    "transfer from no run": ((*ATAS, "--attacks", "transfer:from=data"), "no record.json"),
    "library that is not here": ((*ATAS, "--attacks", "torchattack.PGD"), "torchattack.PGD"),
    "few classes for a ratio": (
        (*ATAS, "--dataset", "good.npz", "--eps", "0.1", "--model", "fc1", "--attacks", "apgd-t"), "use apgd-ce",
    ),
    "verify of nothing": (("verify", "data"), "record.json"),
    "verify with an unknown attack": (("verify", "data", "--attack", "pdg"), "record.json"),
    "norm without a form": ((*ATAS, "--norm", "L2", "--eps", "0.5"), "L2"),
    "suite and data set": ((*ATAS, "--suite", "digits", "--dataset", "fake"), "not fake"),
    "suite and another eps": ((*ATAS, "--suite", "digits", "--eps", "0.1"), "suite 'digits'"),
    "epochs twice": ((*ATAS, "--epochs", "2", "--set", "epochs=3"), "--set epochs"),
    "set without a value": ((*ATAS, "--set", "epochs"), "'epochs'"),
    "set in eval": (("eval", "--checkpoint", "other.pt", "--set", "lr=1"), "--set"),
    "missing data folder": ((*ATAS, "--dataset", "mnist", "--data-dir", "nowhere"), "nowhere"),
    "missing data file": ((*ATAS, "--dataset", "./no.npz", "--eps", "0.1", "--model", "cnn"), "no.npz"),
    "broken npz": ((*ATAS, "--dataset", "broken.npz", "--eps", "0.1", "--model", "cnn"), "broken.npz"),
    "npz without its keys": ((*ATAS, "--dataset", "keys.npz", "--eps", "0.1", "--model", "cnn"), "y_train"),
    "npz without eps": ((*ATAS, "--dataset", "good.npz"), "--eps"),
    "model file that fails": ((*ATAS, "--attacks", "fgsm", "--model", "bad.py:f"), "bad.py"),
    "model for other images": ((*ATAS, "--model", "cnn", "--dataset", "fake:shape=1+2+2", "--set", "crop=0"), "4x4"),
    "checkpoint missing": (("eval", "--checkpoint", "no.pt"), "no.pt"),
    "checkpoint of another architecture": (("eval", "--checkpoint", "other.pt"), "--model"),
    "checkpoint that is a pickle": (("eval", "--checkpoint", "pickle.pt"), "pickle.pt"),
    "checkpoint that is garbage": (("eval", "--checkpoint", "garbage.safetensors"), "garbage.safetensors"),
    "out is a file": ((*ATAS, "--out", "file"), "file"),
    "out cannot be written": ((*ATAS, "--out", "/proc/nowhere"), "/proc/nowhere"),
    "plugin that fails to import": ((*ATAS, "--plugin", "bad.py"), "ModuleNotFoundError"),
    "plugin missing": ((*ATAS, "--plugin", "none.py"), "none.py"),
    "plugin with a taken name": ((*ATAS, "--plugin", "twice.py"), "'atas'"),
    "no examples": ((*ATAS, "--n-examples", "0"), "at least 1"),
    "too many examples": ((*ATAS, "--n-examples", "9999"), "1 to 360"),
    "few classes for autoattack": ((*ATAS, "--dataset", "good.npz", "--eps", "0.1", "--model", "fc1"), "autoattack"),
    "unknown certifier": ((*ATAS, "--certifiers", "ipb"), "'ibp'"),
    "certifier twice": ((*ATAS, "--certifiers", "ibp,ibp"), "'ibp'"),
    "certifier with a threat model": ((*ATAS, "--certifiers", "ibp:eps=0.1"), "'eps'"),
    "no certifier between commas": ((*ATAS, "--certifiers", "ibp,,crown"), "--certifiers 'ibp,,crown'"),
    "certifier without the norm": ((*ATAS, "--certifiers", "smoothing"), "Linf"),
    "certifier of another model": ((*ATAS, "--certifiers", "ibp", "--model", "bounded.py:build"), "Softmax"),
    "certifier of another predictor": (("run", "--defense", "pas", "--certifiers", "crown"), "_log_softmax"),
    "bracket of a model that nothing bounds": ((*ATAS, "--bracket", "--model", "bounded.py:build"), "Softmax"),
    "budget without a bracket": ((*ATAS, "--budget", "10"), "--bracket"),
    "budget of time": ((*ATAS, "--bracket", "--budget", "10m"), "--time-limit 10m"),
    "no budget": ((*ATAS, "--bracket", "--budget", "0"), "such as 1000, not '0'"),
    "time limit without a bracket": ((*ATAS, "--time-limit", "10m"), "--time-limit is for --bracket"),
    "time limit without a unit": ((*ATAS, "--bracket", "--time-limit", "10"), "90s, 10m or 2h"),
    "no time": ((*ATAS, "--bracket", "--time-limit", "0s"), "90s, 10m or 2h"),
    "no attack between commas": ((*ATAS, "--attacks", "fgsm,"), "--attacks 'fgsm,'"),
    "batch of one": ((*ATAS, "--set", "batch_size=1"), "at least 2"),
    "crop beyond the image": ((*ATAS, "--set", "crop=9"), "crop is 9"),
    "steps below one": (("run", "--defense", "pgd-at", "--set", "steps=0"), "at least 1"),
    "alpha below zero": ((*ATAS, "--attacks", "pgd:alpha=-1"), "alpha is -1"),
    "model that cannot be built": ((*ATAS, "--model", "fc1:width=-3"), "-3"),
    "data set that cannot be made": ((*ATAS, "--dataset", "fake:train=-1"), "train and test >= 1"),
    "data set misspelt": ((*ATAS, "--dataset", "minst"), "'mnist'"),
    "plugin that registers nothing": ((*ATAS, "--plugin", "empty.py"), "empty.py"),
    "study on no device": (("study", "overhead", "--set", "device=tpu"), "auto, cpu, cuda"),
    "no threads": ((*ATAS, "--threads", "0"), "1 to 1024"),
    "seeds that are not numbers": ((*ATAS, "--seeds", "a,b"), "--seeds"),
    "table of nothing": (("table", "data"), "record.json"),
    "option of another command": (("table", "--sort", "acc"), "unknown option --sort; see `bench table --help`"),
    "option that argparse misses": (("run", "--defence", "atas"), "unknown option --defence: did you mean --defense?"),
    "baseline with a comparison": (("check", "--baseline", "b", "--update", "why", "--alpha", "0.1"), "--update"),
    "option with its value": (("check", "--basline=x"), "did you mean --baseline?"),
    "choice in other letters": ((*ATAS, "--norm", "linf"), "did you mean 'Linf'?"),
    "choice that there is not": (("table", "--format", "html"), "markdown, csv, latex, json, not 'html'"),
    "model function without parameters": ((*ATAS, "--model", "models.py:nothing"), "it takes (shape, classes, *"),
    "model option by position": ((*ATAS, "--model", "models.py:positional:width=4"), "(..., *, width=...)"),
    "model option misspelt": ((*ATAS, "--model", "small-cnn:widht=4"), "did you mean 'width'?"),
    "entry misspelt": (("list", "attacks", "pdg"), "'pgd'"),
    "study without a name": (("study",), "overhead"),
    "study option misspelt": (("study", "overhead", "--set", "pair=3"), "did you mean 'pairs'?"),
    "study of another's weights": (("study", "reproduce"), "give --checkpoints DIR"),
    "several folders": (("submit", "r", "s", "t", "--entry", "a"), "give one folder; found 3: r, s, t"),
    "an entry without paper and licence": (
        ("submit", "r", "--entry", "a", "--title", "A"), "give --paper and --licence too",
    ),
    "suite that does not exist": ((*ATAS, "--suite", "nothere.toml"), "suite nothere.toml does not exist"),
    "two tasks of submit": (("submit", "r", "--entry", "a", "--contest", "digits/a/0"), "--entry and --contest"),
    "an option of another task of submit": (
        ("submit", "r", "--reproduces", "digits/a", "--by", "x", "--title", "A"), "--title is not for --reproduces"
    ),
    "author without a check": (("submit", "r", "--entry", "a", "--author", "x"), "--author is for --check"),
    "seed 0 of a reproduction": (
        ("submit", "r", "--reproduces", "digits/a", "--by", "x", "--seed", "0"), "--seed is not for --reproduces"
    ),
    "records of a dry run": (("sweep", "--suite", "digits", "--dry-run", "--json"), "--json prints records"),
    "check of a reproduction": (
        ("submit", "r", "--reproduces", "digits/a", "--by", "x", "--check"), "--check is not for --reproduces"
    ),
    "verify under another eps": (("verify", "data", "--attack", "pgd:eps=0.3"), "record.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_line(case, folder, monkeypatch, capsys):
    words, fact = WRONG[case]
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("BENCH_DATA", raising=False)
    with pytest.raises(SystemExit) as done:
        main(words)
    out, err = capsys.readouterr()
    assert done.value.code == 2, err
    assert len(err.splitlines()) == 1, err
    assert fact in err
    assert out == ""
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == before


def test_a_defense_that_fails_in_a_step_is_one_line(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as done:
        main(["run", "--plugin", "failing.py", "--defense", "failing", "--attacks", "none", "--quiet"])
    assert done.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: .*[Ff]ailing.* failed at failing.py:6: OSError: why", last)


def test_wrong_use_is_one_line_in_a_process_of_its_own(folder):
    done = bench_process(folder, "run", "--defense", "atsa")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_another_projects_package_of_our_name_is_named(folder):
    (folder / "intruder" / "attacks").mkdir(parents=True)
    (folder / "intruder" / "attacks" / "__init__.py").touch()
    done = bench_process(folder, "list", PYTHONPATH=str(folder / "intruder"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert str(folder / "intruder" / "attacks") in done.stderr
