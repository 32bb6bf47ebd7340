"""`bench verify` on an honest run, and on runs that somebody changed: a line each, and never a traceback."""

import json
import re
import shutil
from contextlib import suppress

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from bench.cli import main
from bench.core.files import read_arrays, write_arrays
from bench.core.record_files import artifact
from bench.core.verification import VERIFICATION
from bench.verify.inputs import ATTACK, settings
from bench.verify.memorised import TEST_ABOVE_TRAIN
from tests.forged_records import change_record

RUN = ("--attacks", "fgsm,pgd-10", "--n-examples", "60", "--threads", "1")


def run_of(folder):
    (record,) = folder.rglob("record.json")
    return record.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short training, evaluated on 60 examples, of which some fell."""
    out = tmp_path_factory.mktemp("finished")
    words = ("--defense", "standard", "--epochs", "6", "--eps", "0.1", "--set", "probe_every=0", "--out", str(out))
    main(["run", *words, *RUN])
    return run_of(out)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def verified(capsys, *words):
    """Exit code and findings (name -> outcome) of `bench verify --json`; whatever it says is one line at most.

    The outcome of the run agrees with the exit code.
    """
    capsys.readouterr()
    code = 0
    try:
        main(["verify", *map(str, words), "--json", "--quiet", "--seed", "0", "--threads", "1", "--attack", "pgd-10"])
    except SystemExit as done:
        code = done.code
    out, err = capsys.readouterr()
    assert len(err.splitlines()) <= 1, err
    if code == 2:
        return code, {}
    (run,) = json.loads(out)
    assert run["outcome"] == {0: "verified", 1: "failed", 3: "incomplete"}[code]
    assert sum(run["counts"].values()) == len(run["findings"])
    return code, {each["name"]: each["outcome"] for each in run["findings"]}


def those(findings, outcome):
    return {name for name, result in findings.items() if result == outcome}


def change_arrays(run, name, change, *, rehash=True):
    """Change the arrays of a file; as a careful forger would, with the record's hash of it made right again."""
    arrays = {key: value.copy() for key, value in read_arrays(run / name).items()}
    change(arrays)
    write_arrays(run / name, arrays)
    if rehash:
        rename(run, name.removesuffix(".npz"), name)


def rename(run, key, name):
    new = artifact(run / name)
    change_record(run, lambda r: r["artifacts"][key].update(sha256=new.sha256, bytes=new.bytes))


def change_weights(run, change):
    """Other weights under the same header, and the record's hash made right again."""
    path = run / "weights.safetensors"
    with safe_open(path, framework="np") as file:
        header, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({key: change(value) for key, value in state.items()}, path, metadata=header)
    rename(run, "weights", path.name)


def test_an_honest_run_passes(finished, capsys):
    code, findings = verified(capsys, finished)
    assert code == 0
    assert set(findings.values()) <= {"passed", "warning"}
    assert those(findings, "warning") <= {"attacked again", "fgsm run again", "pgd-10 run again"}
    assert {"claims", "attacks and certifiers", *REPEATED} <= set(findings)
    assert len(findings) == 21


def test_the_report_for_people_names_the_run_the_attack_and_the_seed(finished, capsys):
    main(["verify", str(finished.parent), "--seed", "7", "--sample", "3", "--attack", "pgd-3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(finished)
    assert lines[-1].startswith("verified: ")
    (again,) = [line for line in lines if "attacked again" in line]
    assert "pgd-3, seed 7: " in again
    assert " of 3 broken" in again


def test_the_progress_counts_the_rows_of_the_report(finished, capsys):
    capsys.readouterr()
    main(["verify", str(finished), "--seed", "0", "--sample", "3", "--attack", "pgd-3"])
    out, err = capsys.readouterr()
    rows = len(out.splitlines()) - 2
    assert re.search(rf": {rows} of {rows} checks, \d+ s$", err.strip())


def test_nothing_is_stored_in_a_published_entry(run):
    words = ("verify", str(run), "--seed", "0", "--sample", "3", "--attack", "fgsm")
    main(words)
    (run / VERIFICATION).unlink()  # it was stored
    (run.parent / "about.toml").touch()
    main(words)
    assert not (run / VERIFICATION).exists()


def test_a_report_says_what_a_weak_attack_changes(tmp_path, capsys):
    words = ("--defense", "standard", "--epochs", "6", "--eps", "0.1", "--set", "probe_every=0", "--out", str(tmp_path))
    main(["run", *words, "--attacks", "random-noise:samples=1", "--n-examples", "60", "--threads", "1"])
    run = run_of(tmp_path)
    capsys.readouterr()
    main(["verify", str(run), "--seed", "0", "--threads", "1", "--attack", "pgd-10"])
    *_, verdict, last = capsys.readouterr().out.splitlines()
    assert verdict == f"verdict: suspect, by {run / VERIFICATION} (the record's own: no warning signs)"
    assert re.search(r"1 weaker.*; accuracy under attack is at most \d+\.\d %, the record says \d+\.\d %$", last)


def test_files_that_are_not_published_are_named_once_with_the_command(run, capsys):
    (run / "weights.safetensors").unlink()
    (run / "witnesses.npz").unlink()
    change_record(run, lambda r: [r["artifacts"][name].update(path=None) for name in ("weights", "witnesses")])
    with pytest.raises(SystemExit) as done:
        main(["verify", str(run), "--seed", "0"])
    out, err = capsys.readouterr()
    assert done.value.code == 3
    assert "not published: weights, witnesses (train it again: bench run --defense standard" in err.splitlines()[-1]
    assert out.count("  not published") == 2
    assert "None" not in out


@pytest.mark.slow
def test_without_a_seed_each_verification_draws_and_reports_one(finished, capsys):
    seeds = []
    for _ in range(2):
        main(["verify", str(finished), "--json", "--sample", "1", "--attack", "fgsm"])
        seeds.append(json.loads(capsys.readouterr().out)[0]["seed"])
    assert seeds[0] != seeds[1]


def test_the_default_attack_exists():
    assert settings().attack == ATTACK


@pytest.mark.slow
def test_witnesses_are_checked_against_the_eps_of_their_attack(tmp_path, finished, capsys):
    words = ("--checkpoint", str(finished / "weights.safetensors"), "--eps", "0.1,0.05", "--out", str(tmp_path))
    main(["eval", *words, "--attacks", "pgd-10", "--n-examples", "60", "--threads", "1"])
    code, findings = verified(capsys, tmp_path)
    assert code == 0
    assert {findings[name] for name in WITNESSES} == {"passed"}
    run = run_of(tmp_path)
    change_arrays(run, "witnesses.npz", lambda w: w.update(attack=np.full(len(w["attack"]), "pgd-10:eps=0.05")))
    assert "witnesses lie within eps" in those(verified(capsys, run)[1], "failed")


def outside(witnesses):
    witnesses["x_adv"][0] = 1 - witnesses["x_adv"][0]


def flip(table):
    """An example that fell is robust."""
    row = np.flatnonzero(table["clean"] & ~(table["robust/fgsm"] & table["robust/pgd-10"]))[0]
    table["robust/fgsm"][row] = table["robust/pgd-10"][row] = True


def relabel(table):
    table["label"][:] = table["prediction"]
    table["clean"][:] = True


def repredict(table):
    table["prediction"][:] = table["label"]
    table["clean"][:] = True


def swap(record):
    """Fewer examples survive than are right."""
    record["clean"]["acc"], record["worst"]["robust_acc"] = record["worst"]["robust_acc"], record["clean"]["acc"]


def change_config_everywhere(run):
    change_record(run, lambda record: record["config"].update(eval_batch=99))
    (run / "config.json").write_text(json.dumps(json.loads((run / "record.json").read_text())["config"]))


WITNESSES = {
    "every broken example has a witness",
    "witnesses lie within eps",
    "witnesses lie in the box",
    "witnesses are misclassified",
}
REPEATED = {"attacked again", "fgsm run again", "pgd-10 run again", *TEST_ABOVE_TRAIN[:2]}
OF_MODEL = {"predictions", "attacks and certifiers", *REPEATED, *WITNESSES}
TAMPERINGS = {
    "witness outside the ball": (lambda r: change_arrays(r, "witnesses.npz", outside), {"witnesses lie within eps"}),
    "witness file changed": (
        lambda r: change_arrays(r, "witnesses.npz", lambda w: w.update(note=np.zeros(1)), rehash=False),
        {"hash of witnesses"},
    ),
    "example made robust": (
        lambda r: change_arrays(r, "examples.npz", flip), {"aggregates", "every broken example has a witness"},
    ),
    "labels made right": (lambda r: change_arrays(r, "examples.npz", relabel), {"aggregates", "labels"}),
    "predictions made right": (lambda r: change_arrays(r, "examples.npz", repredict), {"aggregates", "predictions"}),
    "weights of another model": (lambda r: change_weights(r, lambda w: w[::-1].copy()), {"predictions"}),
    "accuracies swapped": (lambda r: change_record(r, swap), {"aggregates"}),
    "eps raised": (lambda r: change_record(r, lambda p: p["threat"].update(eps=0.3)), {"claims"}),
    "eps lowered": (
        lambda r: change_record(r, lambda p: p["threat"].update(eps=0.01)), {"claims", "witnesses lie within eps"},
    ),
    "config changed": (lambda r: change_record(r, lambda p: p["config"].update(eps=0.3)), {"configuration"}),
    "config changed throughout": (change_config_everywhere, {"configuration"}),
    "config.json changed": (lambda r: (r / "config.json").write_text("{}"), {"configuration"}),
    "data hash changed": (
        lambda r: change_record(r, lambda p: p["provenance"].update(data_hash="0" * 64)), {"hash of the data"},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", TAMPERINGS)
def test_a_change_fails_the_corresponding_check(case, run, capsys):
    tamper, fails = TAMPERINGS[case]
    tamper(run)
    code, findings = verified(capsys, run)
    assert code == 1
    assert fails <= those(findings, "failed")
    assert not those(findings, "not checkable")


MISSING = {
    "no witnesses": (lambda r: (r / "witnesses.npz").unlink(), {"hash of witnesses"}, WITNESSES),
    "broken witnesses": (lambda r: (r / "witnesses.npz").write_bytes(b"PK"), {"hash of witnesses"}, WITNESSES),
    "no weights": (lambda r: (r / "weights.safetensors").unlink(), {"hash of weights"}, OF_MODEL | {"model"}),
    "broken weights": (
        lambda r: (r / "weights.safetensors").write_bytes(b"x" * 99), {"hash of weights"}, OF_MODEL | {"model"},
    ),
    "no table": (
        lambda r: (r / "examples.npz").unlink(), {"hash of examples", "table"},
        OF_MODEL | {"aggregates", "claims", "labels"},
    ),
    "broken table": (
        lambda r: (r / "examples.npz").write_bytes(b""), {"hash of examples", "table"},
        OF_MODEL | {"aggregates", "claims", "labels"},
    ),
    "table without a column": (
        lambda r: change_arrays(r, "examples.npz", lambda t: t.pop("clean")), {"table"}, OF_MODEL | {"labels"},
    ),
    "table in another order": (
        lambda r: change_arrays(r, "examples.npz", lambda t: t.update(index=t["index"][::-1])), {"table"}, OF_MODEL,
    ),
    "other weights' shapes": (
        lambda r: change_weights(r, lambda w: w[:1].copy()), {"model"}, OF_MODEL,
    ),
    "witnesses elsewhere": (
        lambda r: (
            (r / "witnesses.npz").unlink(),
            change_record(r, lambda p: p["artifacts"]["witnesses"].update(path=None, url="https://example.org")),
        ), set(), WITNESSES | {"hash of witnesses"},
    ),
    "no such data set": (
        lambda r: change_record(r, lambda p: p.update(dataset="./nowhere.npz")), set(),
        OF_MODEL | {"claims", "data", "hash of the data", "labels", "model"},
    ),
    "plugin of the run not given": (
        lambda r: change_record(r, lambda p: p["config"].update(code=["0" * 64])),
        {"claims", "configuration"}, {"code"},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", MISSING)
def test_checks_without_their_files_are_not_checkable_and_the_others_run(case, run, capsys):
    damage, fails, unknown = MISSING[case]
    damage(run)
    code, findings = verified(capsys, run)
    assert code == (1 if fails else 3)
    assert those(findings, "failed") == fails
    assert unknown <= those(findings, "not checkable")
    assert those(findings, "passed")


def test_a_record_that_cannot_be_read_fails(run, capsys):
    (run / "record.json").write_text("{")
    assert verified(capsys, run) == (1, {"record": "failed"})


@pytest.mark.slow
def test_a_consistently_forged_claim_is_refuted_by_the_second_attack(run, capsys):
    """All fallen examples are called robust, in table, record and witnesses, with every hash right."""

    def forge(table):
        for spec in ("fgsm", "pgd-10"):
            table[f"robust/{spec}"] = table["clean"]

    def claim(record):
        for result in (*record["attacks"].values(), record["worst"]):
            result |= {"robust_acc": record["clean"]["acc"], "ci95": record["clean"]["ci95"]}
        record["worst_by"] = []

    change_arrays(run, "examples.npz", forge)
    change_arrays(run, "witnesses.npz", lambda w: w.update({key: value[:0] for key, value in w.items()}))
    change_record(run, claim)
    code, findings = verified(capsys, run)
    assert code == 1
    assert those(findings, "failed") == {"attacked again", "fgsm run again", "pgd-10 run again"}
    code, findings = verified(capsys, run, "--sample", "0")
    assert code == 0
    fell = []
    for attack in ("random-noise:samples=1", "pgd-10"):
        with suppress(SystemExit):
            main(["verify", str(run), "--seed", "0", "--attack", attack])
        fell.append(int(re.search(r"seed 0: (\d+) of ", capsys.readouterr().out)[1]))
    assert fell[0] < fell[1]


MODEL = """
from torch import nn

def build(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
"""


@pytest.mark.slow
def test_code_of_a_run_is_not_run_unless_the_user_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODEL)
    main(["run", "--defense", "standard", "--epochs", "1", "--model", "mine.py:build", "--set", "probe_every=0", *RUN])
    code, findings = verified(capsys, "runs")
    assert code == 3
    assert {"code", "model", *OF_MODEL} == those(findings, "not checkable")
    with pytest.raises(SystemExit):
        main(["verify", "runs", "--quiet"])
    assert "give --plugin mine.py to run the code of the run (read it first)" in capsys.readouterr().err
    code, findings = verified(capsys, "runs", "--plugin", "mine.py")
    assert code == 0
    assert not those(findings, "not checkable")
    (tmp_path / "mine.py").write_text(MODEL + "# changed\n")
    code, findings = verified(capsys, "runs", "--plugin", "mine.py")
    assert those(findings, "failed") == {"code"}


@pytest.mark.parametrize(("words", "hint"), [
    (("--attack", "pdg"), "did you mean 'pgd'"),
    (("--data-dir", "nowhere"), "does not exist"),
    (("--plugin", "nothing.py"), "does not exist"),
    (("--sample", "-1"), "at least 0"),
    (("elsewhere",), "holds no record.json"),
])  # fmt: skip
def test_wrong_use_is_one_line(words, hint, finished, capsys):
    with pytest.raises(SystemExit) as done:
        main(["verify", str(finished), *words])
    out, err = capsys.readouterr()
    assert (done.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert hint in err
