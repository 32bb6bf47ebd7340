"""`--certifiers` and `--bracket`: record, table, verification, an interrupted run, an unsound certifier."""

import json
import shutil

import numpy as np
import pytest

from bench.cli import main
from bench.core.files import read_arrays, write_arrays
from bench.core.record_checks import check_record
from bench.core.record_files import artifact, read_record
from tests.end_to_end.command import bench, bench_killed, bench_process
from tests.forged_records import change_record

pytestmark = pytest.mark.slow
TRAIN = ("run", "--defense", "standard", "--epochs", "6", "--set", "probe_every=0", "--threads", "1")
EVAL = ("--eps", "0.05", "--n-examples", "60", "--threads", "1")
BRACKET = ("--certifiers", "crown", "--bracket", "--budget", "300")


def run_of(folder):
    (record,) = folder.rglob("record.json")
    return record.parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    out = tmp_path_factory.mktemp("weights")
    main([*TRAIN, "--attacks", "none", "--out", str(out)])
    return str(run_of(out) / "weights.safetensors")


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    main(["eval", "--checkpoint", weights, *EVAL, *BRACKET, "--out", str(out)])
    return run_of(out)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def test_the_record_has_the_interval_and_the_stages(finished):
    record, table = read_record(finished), read_arrays(finished / "examples.npz")
    check_record(record, table)
    assert record.attacks == {}
    assert list(record.certifiers) == ["crown"]
    bracket = record.bracket
    assert 0 < bracket.certified_acc <= bracket.robust_acc < record.clean.acc
    assert {"clean", "fgsm", "ibp", "crown"} <= set(bracket.stages)
    assert bracket.stages["crown"].certified == table["certified/crown"].sum() > 0
    assert bracket.stages["fgsm"].broken > 0
    assert (bracket.budget, bracket.time_limit, bracket.truncated) == (300, None, False)
    assert record.audited == 1
    assert record.config["budget"] == 300
    witnesses = read_arrays(finished / "witnesses.npz")
    broken = table["clean"] & (table["status"] == "broken")
    assert witnesses["index"].tolist() == np.flatnonzero(broken).tolist()
    assert set(witnesses["attack"]) == {"bracket"}
    assert not (finished / "parts").exists()


def test_the_table_shows_them(finished, capsys):
    capsys.readouterr()
    main(["table", str(finished)])
    out = capsys.readouterr().out
    record = read_record(finished)
    ends = f"[{100 * record.bracket.certified_acc:.1f}, {100 * record.bracket.robust_acc:.1f}]"
    assert ends in out
    assert "certified crown" in out


def verified(capsys, run, *words):
    capsys.readouterr()
    code = 0
    try:
        main(["verify", str(run), "--json", "--seed", "0", "--threads", "1", "--attack", "pgd-10", *words])
    except SystemExit as done:
        code = done.code
    findings = json.loads(capsys.readouterr().out)[0]["findings"]
    return code, {each["name"]: (each["outcome"], each["evidence"]) for each in findings}


def failed(findings):
    return {name for name, (outcome, _) in findings.items() if outcome == "failed"}


def test_an_honest_run_passes_verification(finished, capsys):
    code, findings = verified(capsys, finished)
    assert code == 0
    assert {outcome for outcome, _ in findings.values()} == {"passed"}
    assert findings["certified again by crown"][1] == "every certificate has a proof, which `bench recheck` checks"
    _, none = verified(capsys, finished, "--sample", "0")
    assert "certified again by crown" not in none


def change_table(run, change):
    """Change columns, and the record's hash of them to match."""
    table = {key: value.copy() for key, value in read_arrays(run / "examples.npz").items()}
    change(table)
    write_arrays(run / "examples.npz", table)
    new = artifact(run / "examples.npz")
    change_record(run, lambda r: r["artifacts"]["examples"].update(sha256=new.sha256, bytes=new.bytes))


def first(table, status):
    return np.flatnonzero(table["clean"] & (table["status"] == status))[0]


def reopen(table):
    """A broken example is undecided again."""
    row = first(table, "broken")
    table["status"][row], table["decided_by"][row] = "open", ""


def promote(table):
    """A broken example is certified."""
    row = first(table, "broken")
    table["status"][row], table["decided_by"][row] = "certified", "crown"


def claim(table):
    """Every correctly classified example is certified by crown, and none is broken."""
    correct = table["clean"]
    table["certified/crown"][:] = correct
    table["radius/crown"][:] = np.where(correct, np.float32(0.05), np.float32(0))
    table["status"][correct], table["decided_by"][correct] = "certified", "crown"


def claim_throughout(run):
    """The same, with record and witnesses to match: every hash and every aggregate is right."""
    change_table(run, claim)
    table, names = read_arrays(run / "examples.npz"), ("index", "x_adv", "attack")
    witnesses = read_arrays(run / "witnesses.npz")
    write_arrays(run / "witnesses.npz", {name: witnesses[name][:0] for name in names})
    new, right = artifact(run / "witnesses.npz"), int(table["clean"].sum())

    def change(record):
        acc, ci95 = record["clean"]["acc"], record["clean"]["ci95"]
        radius = float(table["radius/crown"].astype(np.float64).mean())
        record["artifacts"]["witnesses"].update(sha256=new.sha256, bytes=new.bytes)
        record["certifiers"]["crown"].update(certified_acc=acc, ci95=ci95, mean_radius=radius)
        record["worst"], record["worst_by"] = {"robust_acc": acc, "ci95": ci95}, []
        record["bracket"].update(certified_acc=acc, certified_ci95=ci95, robust_acc=acc, robust_ci95=ci95, open=0)
        for name, stage in record["bracket"]["stages"].items():
            stage.update(certified=right if name == "crown" else 0, broken=stage["broken"] if name == "clean" else 0)

    change_record(run, change)


TAMPERINGS = {
    "a broken example reopened": (
        lambda r: change_table(r, reopen), {"aggregates", "every broken example has a witness"},
    ),
    "a broken example certified": (
        lambda r: change_table(r, promote),
        {"aggregates", "certificates and witnesses", "attacked again", "every broken example has a witness"},
    ),
    "the lower end raised": (
        lambda r: change_record(r, lambda p: p["bracket"].update(certified_acc=p["bracket"]["robust_acc"] + 0.1)),
        {"aggregates"},
    ),
    "another stage named": (
        lambda r: change_record(r, lambda p: p["bracket"]["stages"].update(other=p["bracket"]["stages"]["crown"])),
        {"aggregates", "attacks and certifiers"},
    ),
    "radii raised": (
        lambda r: change_table(r, lambda t: t["radius/crown"].__imul__(2)), {"aggregates", "certified again by crown"},
    ),
    "statuses that are none": (
        lambda r: change_table(r, lambda t: t.update(status=t["clean"])), {"table"},
    ),
    "all claimed": (claim_throughout, {"attacked again", "certified again by crown"}),
}  # fmt: skip


@pytest.mark.parametrize("case", TAMPERINGS)
def test_a_change_fails_the_corresponding_checks(case, run, capsys):
    tamper, fails = TAMPERINGS[case]
    tamper(run)
    code, findings = verified(capsys, run)
    assert code == 1
    assert failed(findings) == fails


def test_a_certifier_from_a_file_is_not_run_unless_the_user_names_it(run, capsys, tmp_path):
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\ndef build(): ...\n")
    change_record(run, lambda p: p["certifiers"].update({f"{trap}:build": p["certifiers"]["crown"]}))
    _, findings = verified(capsys, run)
    assert findings[f"certified again by {trap}:build"][0] == "not checkable"
    assert not (tmp_path / "sprung").exists()


LIAR = """
from dataclasses import dataclass
import torch
from bench.api import Certificate, Certifier, registry

@registry.certifier("liar")
@dataclass(frozen=True, kw_only=True)
class Liar(Certifier):
    '''Certifies every correctly classified example.'''
    def certify(self, model, batch, threat, *, generator):
        correct = model(batch.x).argmax(dim=1) == batch.y
        return Certificate(threat.eps * correct, correct)
"""


@pytest.mark.parametrize("words", [("--attacks", "none"), ("--bracket",), ("--attacks", "pgd-10")])
def test_a_false_certificate_of_a_plugin_ends_the_run_without_a_record(words, weights, tmp_path):
    (tmp_path / "liar.py").write_text(LIAR)
    far = ("--eps", "0.4", "--n-examples", "60", "--threads", "1")
    options = ("--plugin", "liar.py", "--certifiers", "liar", *words)
    done = bench_process(tmp_path, "eval", "--checkpoint", weights, *far, *options)
    assert done.returncode == 1, done.stderr
    assert "liar certifie" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("record.json"))


def test_a_killed_bracket_continues_and_ends_like_an_undisturbed_one(weights, finished, tmp_path):
    words = ["eval", "--checkpoint", weights, *EVAL, *BRACKET]
    bench_killed(tmp_path, *words, pattern="parts/*/*.npz", n=5)
    assert not list(tmp_path.rglob("record.json"))
    done = bench(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert (run_of(tmp_path) / "examples.npz").read_bytes() == (finished / "examples.npz").read_bytes()
