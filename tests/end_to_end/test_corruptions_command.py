"""`--corruptions`, suites of corruptions and the files of CIFAR-10-C, as a user gives them."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.core import registry
from bench.core.example_table import CORRUPTED, SEVERITIES
from bench.core.files import read_arrays, write_arrays
from bench.core.record_files import read_record
from bench.datasets.corruption_sources import CorruptionSource
from bench.datasets.corruptions import BENCHMARK, corrupted
from bench.datasets.load import load_arrays
from bench.datasets.split import Split
from bench.evaluate import corrupted as module
from bench.training.checkpoints import read_spec
from bench.training.rebuild import load_weights, new_model
from tests.end_to_end.command import bench

N = 12
SUITE = """
summary = "digits under common corruptions"
dataset = "digits"
model = "small-cnn"
norm = "corruptions"
eps = 0
attacks = []
corruptions = ["fog", "contrast"]
"""


def only(folder, pattern):
    (found,) = Path(folder).glob(pattern)
    return found


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A trained network with corruptions beside an attack, and its evaluation by a suite of corruptions."""
    home = tmp_path_factory.mktemp("digits")
    (home / "digits-c.toml").write_text(SUITE)
    small = ("--defense", "standard", "--epochs", "2", "--attacks", "fgsm", "--n-examples", "40")
    done = bench(home, "run", *small, "--corruptions", "fog,pixelate")
    assert done.returncode == 0, done.stderr
    weights = only(home / "runs", "digits-standard-*/0/weights.safetensors")
    evaluated = bench(
        home, "eval", "--checkpoint", str(weights), "--suite", "digits-c.toml", "--n-examples", "40", "--out", "c"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    return home, done, evaluated


def test_corruptions_are_columns_beside_the_attacks(digits):
    home, done, _ = digits
    folder = only(home / "runs", "digits-standard-*/0")
    record, table = read_record(folder), read_arrays(folder / "examples.npz")
    assert list(record.corruptions) == ["fog", "pixelate"]
    fog = np.stack([table[f"{CORRUPTED}fog:severity={s}"] for s in SEVERITIES])
    assert record.corruptions["fog"].acc == pytest.approx(fog.mean())
    assert record.corruptions["fog"].by_severity == pytest.approx(fog.mean(axis=1).tolist())
    means = [each.acc for each in record.corruptions.values()]
    assert record.corrupted.acc == pytest.approx(np.mean(means))
    assert 0 < fog.mean() < 1
    assert record.worst_by == ["fgsm"]  # corruptions are no attack
    assert "mean of 2 corruptions" in done.stdout
    assert "2 made here" in done.stderr


def test_the_columns_are_those_of_the_corrupted_images(digits):
    home, _, _ = digits
    folder = only(home / "runs", "digits-standard-*/0")
    table = read_arrays(folder / "examples.npz")
    data = load_arrays("digits", None)
    model = new_model(read_spec(folder / "weights.safetensors"))
    load_weights(model, folder / "weights.safetensors")
    x = corrupted(data.x_test[:40], np.arange(40), "fog", 5)
    with torch.no_grad():
        predicted = model.eval()(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255).argmax(dim=1).numpy()
    assert (predicted == data.y_test[:40]).tolist() == table[f"{CORRUPTED}fog:severity=5"].tolist()


def test_a_suite_of_corruptions_attacks_nothing(digits):
    home, _, evaluated = digits
    record = read_record(only(home / "c", "digits-standard-*/0"))
    assert (record.threat.norm, record.threat.eps, record.worst) == ("corruptions", 0, None)
    assert list(record.corruptions) == ["fog", "contrast"]
    assert record.sanity.verdict == "not-attacked"
    assert record.suite is None  # these are not the authors' images
    assert "corruptions, seed 0" in evaluated.stdout
    table = bench(home, "table", "c", "--format", "json")
    (row,) = json.loads(table.stdout)
    assert set(row["corruptions"]) == {"fog", "contrast"}
    assert row["corrupted_acc"] == record.corrupted.acc
    again = bench(
        home, "eval", "--checkpoint", str(only(home / "c", "*/0/weights.safetensors")), "--suite", "digits-c.toml",
        "--n-examples", "40", "--out", "c",
    )  # fmt: skip
    assert "was finished already" in again.stdout
    shown = bench(home, "show", str(only(home / "c", "*/0")))
    assert "fog (severity 1 to 5" in shown.stdout


def test_verify_measures_them_again(digits):
    home, _, _ = digits
    verified = bench(home, "verify", "c", "--sample", "0")
    assert verified.returncode == 0, verified.stdout
    (line,) = [line for line in verified.stdout.splitlines() if "corruptions measured again" in line]
    assert line.startswith("passed")
    assert "0 of 400 outcomes differ" in line


def test_verify_finds_a_changed_column(digits, tmp_path):
    home, _, _ = digits
    shutil.copytree(home / "c", tmp_path / "c")
    folder = only(tmp_path / "c", "*/0")
    table = read_arrays(folder / "examples.npz")
    key = f"{CORRUPTED}fog:severity=5"
    table[key] = np.ones_like(table[key])
    write_arrays(folder / "examples.npz", table)
    verified = bench(tmp_path, "verify", "c", "--sample", "0")
    assert verified.returncode == 1
    failed = [line.split("  ")[1] for line in verified.stdout.splitlines() if line.startswith("failed  ")]
    assert {"corruptions measured again", "aggregates"} <= {name.strip() for name in failed}


@pytest.fixture
def cifar(tmp_path):
    """A tiny cifar10.npz, and CIFAR-10-C beside it: severity s of a corruption is brighter by 10 s."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 200, (N, 32, 32, 3), dtype=np.uint8), np.arange(N) % 10
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for k, name in enumerate(BENCHMARK):
        np.save(folder / f"{name}.npy", np.concatenate([x + np.uint8(10 * s + k) for s in SEVERITIES]))
    np.save(folder / "labels.npy", np.tile(y, 5))
    options = ("--dataset", "cifar10", "--data-dir", ".", "--eps", "8/255", "--model", "small-cnn:width=2:hidden=4")
    done = bench(tmp_path, "run", "--defense", "standard", "--epochs", "1", "--attacks", "none", *options)
    assert done.returncode == 0, done.stderr
    return tmp_path, ("eval", "--checkpoint", str(only(tmp_path / "runs", "cifar10-*/0/weights.safetensors")))


def test_the_authors_files_are_read_where_they_are(cifar):
    home, words = cifar
    done = bench(home, *words, "--suite", "cifar10-corruptions", "--data-dir", ".", "--n-examples", "7", "--out", "c")
    assert done.returncode == 0, done.stderr
    record = read_record(only(home / "c", "*/0"))
    assert record.suite == "cifar10-corruptions"
    assert tuple(record.corruptions) == BENCHMARK
    digest = hashlib.sha256((home / "CIFAR-10-C" / "frost.npy").read_bytes()).hexdigest()
    assert record.corruptions["frost"].file == digest
    assert f"frost:file={digest[:12]}" in record.config["corruptions"]
    assert "15 read from CIFAR-10-C" in done.stderr
    table = read_arrays(only(home / "c", "*/0") / "examples.npz")
    rows = np.load(home / "CIFAR-10-C" / "fog.npy")[2 * N : 2 * N + 7]
    model = new_model(read_spec(only(home / "c", "*/0/weights.safetensors")))
    load_weights(model, only(home / "c", "*/0/weights.safetensors"))
    with torch.no_grad():
        predicted = model.eval()(torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255).argmax(dim=1).numpy()
    assert table[f"{CORRUPTED}fog:severity=3"].tolist() == (predicted == table["label"]).tolist()
    test = Split.test(load_arrays("cifar10", home), torch.device("cpu"))
    read = CorruptionSource("fog", home / "CIFAR-10-C" / "fog.npy", "0").images(test.take(torch.tensor([4])), 3, N)
    assert torch.equal((read[0] * 255).round().byte().permute(1, 2, 0), torch.from_numpy(rows[4]))
    # other files are another evaluation
    changed = np.load(home / "CIFAR-10-C" / "frost.npy")[::-1]
    np.save(home / "CIFAR-10-C" / "frost.npy", changed)
    bench(home, *words, "--suite", "cifar10-corruptions", "--data-dir", ".", "--n-examples", "7", "--out", "c")
    assert len(list((home / "c").glob("*/0/record.json"))) == 2
    verified = bench(home, "verify", "c", "--sample", "0", "--data-dir", ".")
    assert "the images of frost are not those of the run" in verified.stdout


def test_without_the_files_they_are_made_and_the_run_is_no_boards(cifar):
    home, words = cifar
    (home / "CIFAR-10-C").rename(home / "elsewhere")
    done = bench(home, *words, "--suite", "cifar10-corruptions", "--data-dir", ".", "--n-examples", "3", "--out", "c")
    assert done.returncode == 0, done.stderr
    record = read_record(only(home / "c", "*/0"))
    assert set(record.corruptions) == set(BENCHMARK) - {"frost"}
    assert record.suite is None
    assert "14 made here" in done.stderr
    assert "without frost" in done.stderr


WRONG = {
    "labels": (
        lambda folder: np.save(folder / "labels.npy", np.zeros(5 * N, int)),
        "does not repeat the 12 test labels",
    ),
    "shape": (
        lambda folder: np.save(folder / "fog.npy", np.zeros((5, 32, 32, 3), np.uint8)),
        "it must be uint8 (60, 32",
    ),
    "broken": (lambda folder: (folder / "fog.npy").write_bytes(b"x"), "is not a readable .npy file"),
    "no labels": (lambda folder: (folder / "labels.npy").unlink(), "is not a readable .npy file"),
}


@pytest.mark.parametrize("how", WRONG)
def test_files_that_do_not_fit_are_refused(cifar, how):
    home, words = cifar
    spoil, message = WRONG[how]
    spoil(home / "CIFAR-10-C")
    done = bench(home, *words, "--suite", "cifar10-corruptions", "--data-dir", ".")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_mistakes_are_one_line(digits):
    home, _, _ = digits
    weights = str(only(home / "c", "*/0/weights.safetensors"))
    evaluate = ("eval", "--checkpoint", weights, "--suite", "digits-c.toml")
    for words, message in (
        (("run", "--defense", "standard", "--corruptions", "fogg"), "did you mean 'fog'?"),
        (("run", "--defense", "standard", "--corruptions", "frost"), "is read from DATA_DIR/CIFAR-10-C/frost.npy"),
        (("run", "--defense", "standard", "--corruptions", "saturate"), "needs images with three channels"),
        (("run", "--defense", "pgd-at", "--suite", "digits-c.toml"), "has no norm to train for"),
        ((*evaluate, "--eps", "0.1"), "has no norm; leave out"),
        ((*evaluate, "--attacks", "fgsm"), "has no norm; leave out"),
        ((*evaluate, "--bracket"), "has no norm; leave out"),
        ((*evaluate, "--corruptions", "none"), "measures nothing but corruptions"),
    ):
        done = bench(home, *words)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert done.stderr.count("\n") == 1


def test_an_interrupted_evaluation_uses_what_it_has_finished(digits, monkeypatch):
    home, _, _ = digits
    weights = str(only(home / "c", "*/0/weights.safetensors"))
    words = ("eval", "--checkpoint", weights, "--suite", "digits-c.toml", "--n-examples", "30", "--out", "i")
    measured = []
    correct = module._correct

    def interrupted(model, test, source, *rest):
        measured.append(source.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        time.sleep(0.2)
        return correct(model, test, source, *rest)

    monkeypatch.setattr(module, "_correct", interrupted)
    assert bench(home, *words).returncode == 130
    bench(home, *words)
    assert measured == ["fog", "contrast", "contrast"]
    assert read_record(only(home / "i", "*/0")).corruptions["fog"].seconds >= 0.2


def test_a_plugin_adds_a_corruption(digits, monkeypatch):
    home, _, _ = digits
    monkeypatch.setattr(registry.corruption, "_plugins", {})
    (home / "dark.py").write_text(
        "from bench.api import registry\n\n\n@registry.corruption('dark')\n"
        "def dark(image, severity, random):\n    'All black.'\n    return 0 * image\n"
    )
    weights = str(only(home / "c", "*/0/weights.safetensors"))
    words = ("--suite", "digits-c.toml", "--n-examples", "30", "--out", "p", "--plugin", "dark.py")
    done = bench(home, "eval", "--checkpoint", weights, *words, "--corruptions", "dark")
    assert done.returncode == 0, done.stderr
    result = read_record(only(home / "p", "*/0")).corruptions["dark"]
    assert len(set(result.by_severity)) == 1
