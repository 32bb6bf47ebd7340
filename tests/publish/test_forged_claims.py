"""Claims that a record makes beside its accuracies, each forged on its own: found, in a line that names it."""

import json
import shutil
from pathlib import Path

import pytest

from bench.core import files
from bench.core.config import content_hash
from bench.core.record_files import read_record
from bench.datasets.digits import digits
from bench.datasets.split import Split
from bench.publish.command import check_command, read_command
from bench.runs.request import Request
from bench.verify.claims import check_claims, read_proofs
from bench.verify.inputs import load_model, make_context, read_table, settings, spec_of
from bench.verify.repeat import check_methods
from tests.forged_records import change_record
from tests.publish.forging import run_of, trained

WEIGHTS = "weights.safetensors"
HUB = f"hf:org/net/model.safetensors@{'a' * 40}"


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A short training under two attacks and a certifier, with proofs."""
    words = ("--epochs", "1", "--attacks", "fgsm,bracket-attack", "--certifiers", "ibp", "--n-examples", "40")
    return run_of(trained(tmp_path_factory.mktemp("honest"), *words))


@pytest.fixture
def run(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "run")


@pytest.fixture(scope="module")
def chosen():
    return settings(seed=0, threads=1, device="cpu")


def claims(run):
    record = read_record(run)
    proofs = read_proofs(run, record, files.read_arrays)
    n = len(digits(None).y_train)
    return check_claims(record, read_table(run), n_train=n, proofs=proofs, spec=spec_of(run / WEIGHTS))


def in_config(record, **values):
    """Settings in the config, with the hash that it then has."""
    record["config"].update(values)
    record["config_hash"] = content_hash(record["config"])


def in_training(record, **values):
    in_config(record, training=record["config"]["training"] | values)


def suspect(record, verdict):
    """A check alarms, and the verdict is another one."""
    record["sanity"]["checks"][0] |= {"outcome": "unreliable", "evidence": "bad"}
    record["sanity"] |= {"verdict": verdict, "reasons": []}


FORGED = {
    "fixed weights": (lambda r: r.update(training=None), "trained here is False in the record and True by"),
    "weights from elsewhere": (lambda r: in_config(r, checkpoint="0" * 64), "a checkpoint is True"),
    "fewer epochs": (lambda r: r["training"].update(epochs=0), "epochs is 0 in the record and 1 by"),
    "cheap training": (lambda r: r["training"].update(forwards=700), "700 forward passes are too few"),
    "training in no time": (lambda r: r["training"].update(seconds=0.0, forwards=10**12), "not plausible"),
    "training faster than its batches": (lambda r: r["training"].update(seconds=1e-5), "passes of a batch, which is"),
    "computation": (
        lambda r: r["training"].update(computation=r["training"]["computation"] | {"precision": "float2"}),
        "its computation is",
    ),
    "training without end": (lambda r: r["training"].update(seconds=1e9), "not plausible"),
    "cheap attack": (lambda r: r["attacks"]["fgsm"].update(forwards=1, backwards=0), "fgsm made 1 passes"),
    "attack in no time": (
        lambda r: r["attacks"]["fgsm"].update(forwards=10**13, seconds=0.0), "fgsm took 0.0 s",
    ),
    "cheap stages": (
        lambda r: next(iter(r["attacks"]["bracket-attack"]["stages"].values())).update(forwards=0), "not the sum",
    ),
    "stages that broke nothing": (
        lambda r: [s.update(broken=0) for s in r["attacks"]["bracket-attack"]["stages"].values()], "different numbers",
    ),
    "verdict better than its checks": (lambda r: suspect(r, "no-warnings"), "no-warnings in the record and unreliable"),
    "reasons left out": (lambda r: suspect(r, "unreliable"), "reasons of the verdict is []"),
    "audited": (lambda r: r.update(audited=1000), "audited is 1000"),
    "proofs that are not there": (lambda r: r["proofs"].update(count=r["proofs"]["count"] + 1), "proofs"),
    "unknown setting": (lambda r: in_config(r, trick=1), "'trick', which is no setting"),
    "another attack in the config": (lambda r: in_config(r, attacks=["autoattack"]), "attacks is ['fgsm'"),
    "another certifier in the config": (lambda r: in_config(r, certifiers=["crown"]), "certifiers is ['ibp']"),
    "a bracket in the config": (lambda r: in_config(r, budget=1000), "budget is None in the record and 1000"),
    "evaluated at eps 0.18": (lambda r: in_config(r, eps=0.18), "eps is 0.2 in the record and 0.18 by"),
    "another norm": (lambda r: in_config(r, norm="L2"), "norm is Linf in the record and L2"),
    "another suite": (lambda r: in_config(r, suite="mnist"), "suite is digits in the record and mnist"),
    "another defense": (lambda r: r.update(defense="trades"), "defense is trades in the record and standard"),
    "hash of the config": (lambda r: r.update(config_hash="0" * 12), "config_hash is 000000000000"),
    "settings of the weights": (lambda r: in_training(r, lr=0.5), "settings in the header of the weights differ"),
    "setting that is not valid": (lambda r: in_training(r, lr=-1.0), "lr is -1.0"),
    "setting that there is not": (lambda r: in_training(r, trick=1), "no setting 'trick'"),
    "certificates without end": (lambda r: r["certifiers"]["ibp"].update(seconds=1e9), "ibp took 1000000000.0 s"),
    "a warning that is a page": (lambda r: r["training"].update(warnings=["best\x1b[2J"]), "which is not one line"),
    "threads": (lambda r: r["provenance"].update(threads="many"), "provenance has threads 'many'"),
    "date": (lambda r: r["provenance"].update(finished="yesterday"), "finished 'yesterday'"),
    "commit": (lambda r: r["provenance"].update(git_commit="<b>"), "git_commit '<b>'"),
    "hardware": (lambda r: r["provenance"].update(hardware=["TPU"]), "hardware"),
    "versions": (lambda r: r["provenance"].update(versions={"torch": 2}), "versions"),
    "fact that is none": (lambda r: r["provenance"].update(award="best paper"), "award 'best paper'"),
}  # fmt: skip


def test_an_honest_record_follows_from_its_config_table_and_files(run):
    assert claims(run).outcome == "passed"


def test_a_training_by_bounds_alone_makes_no_passes(tmp_path):
    words = ("--epochs", "1", "--attacks", "fgsm", "--n-examples", "40", "--model", "fc1:width=10")
    run = run_of(trained(tmp_path, *words, "--set", "batch_size=500", defense="kw"))
    training = read_record(run).training
    assert training.forwards < 1437
    assert claims(run).outcome == "passed"


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_claim_is_found(case, run):
    forge, reason = FORGED[case]
    change_record(run, forge)
    found = claims(run)
    assert found.outcome == "failed"
    assert reason in found.evidence


def methods(run, chosen):
    record, data = read_record(run), digits(None)
    model = load_model(run / WEIGHTS, record, data, chosen)
    return check_methods(record, make_context(model, Split.test(data, chosen.device), record, chosen), 10, chosen)


@pytest.mark.parametrize(("spec", "reason"), [
    ("pgd:eps=nan", "not 'nan'"), ("pgd:norm=L7", "not 'L7'"), ("my-secret-attack", "unknown attack"),
    ("pgd:steps=0", "at least 1"), ("pgd:trick=1", "no option 'trick'"), ("autoattack:norm=L2", "give its eps too"),
    ("pgd:eps=0.2", "is written as 'pgd'"), ("pgd:eps=99", "eps"),
])  # fmt: skip
def test_an_attack_that_the_registry_does_not_know_is_refused(spec, reason, run, chosen):
    change_record(run, lambda r: r.update(attacks={spec: r["attacks"]["fgsm"]}))
    found = methods(run, chosen)
    assert found.outcome == "failed"
    assert reason in found.evidence


@pytest.mark.parametrize(("spec", "reason"), [
    ("oracle", "unknown certifier"), ("exact:seconds=0.0001", "no option 'seconds'"), ("smoothing", "no Linf form"),
    ("lipschitz", "no Linf form"),
])  # fmt: skip
def test_a_certifier_that_cannot_have_certified_is_refused(spec, reason, run, chosen):
    change_record(run, lambda r: r.update(certifiers={spec: r["certifiers"]["ibp"]}))
    found = methods(run, chosen)
    assert found.outcome == "failed"
    assert reason in found.evidence


def test_code_that_is_not_here_cannot_be_checked(run, chosen):
    change_record(run, lambda r: r.update(attacks={"torchattacks.PGD": r["attacks"]["fgsm"]}))
    assert methods(run, chosen).outcome == "not checkable"


def test_whether_certificates_are_probabilistic_is_what_the_registry_says(run, chosen):
    assert methods(run, chosen).outcome == "passed"
    change_record(run, lambda r: r["certifiers"]["ibp"].update(kind="probabilistic"))
    found = methods(run, chosen)
    assert (found.outcome, found.evidence) == ("failed", "ibp is deterministic, the record says probabilistic")


@pytest.mark.parametrize("options", [
    {"defense": "standard", "suite": "digits", "eps": (0.1, 0.2), "overrides": {"lr": "0.1", "epochs": "3"}},
    {"defense": "standard", "dataset": "mnist", "norm": "L2", "eps": (1.5,), "box": False, "attacks": []},
    {"defense": "standard", "attacks": ["pgd-50", "pgd:eps=0.1"], "certifiers": ["ibp", "bab:nodes=10"]},
    {"defense": "standard", "corruptions": ["fog", "snow"]}, {"defense": "standard", "corruptions": []},
    {"defense": "standard", "budget": 10, "time_limit": 60.0, "n_examples": 30},
    {"defense": "mine", "plugins": [Path("mine.py")]},
    {"checkpoint": Path("a.pt"), "state_dict": "ema", "model": "small-cnn", "trusted": [Path("net.py")]},
    {"checkpoint": Path(HUB), "origin": HUB, "model": "small-cnn"},
])  # fmt: skip
def test_a_command_is_read_as_the_request_that_wrote_it(options):
    text = Request(**options).command_line(3)
    read = read_command(text)
    assert read.command_line(3) == text
    for name, value in options.items():
        assert getattr(read, name) == value, name


def commanded(run, chosen, command):
    change_record(run, lambda r: r["provenance"].update(command=command))
    return check_command(read_record(run), run, chosen)


def test_the_command_is_the_one_that_the_config_gives(run, chosen):
    text = json.loads((run / "record.json").read_text())["provenance"]["command"]
    assert read_command(text).command_line(0) == text
    assert commanded(run, chosen, text).outcome == "passed"
    for command, reason in {
        text.replace("standard", "trades"): "",
        text.replace("fgsm", "pgd-50"): "gives attacks",
        text.replace("--seeds 0", "--seeds 1"): "a run of seed 0 writes",
        text.replace("--set epochs=1 ", ""): "gives training",
        f"{text} --force": "no option",
        f"{text} --plugin evil.py": "evil.py",
        text.replace("--set probe", "--model evil.py:build --set probe"): "names a file",
        text.replace("--set probe", "--dataset evil.npz --set probe"): "names a file",
        "bench submit x": "neither `bench run`",
        "bench eval --checkpoint weights.safetensors --seeds 0": "gives defense None",
        text.replace("--n-examples 40", "--n-examples 41"): "gives n_examples 41",
        text.replace("40", "forty"): "a number that is none",
    }.items():
        found = commanded(run, chosen, command)
        assert found.outcome == "failed", command
        assert reason in found.evidence, command
    change_record(run, lambda r: r["provenance"].pop("command"))
    assert check_command(read_record(run), run, chosen).outcome == "failed"


def test_the_file_of_a_suite_is_not_read_as_the_board_has_it_by_its_name(run, chosen):
    text = json.loads((run / "record.json").read_text())["provenance"]["command"]
    assert "--suite" not in text
    of_file = text.replace("--defense standard", "--defense standard --suite digits.toml")
    assert commanded(run, chosen, of_file).outcome == "passed"
    found = commanded(run, chosen, of_file.replace("digits.toml", "mnist.toml"))
    assert (found.outcome, "'mnist' is not the suite of the record" in found.evidence) == ("failed", True)
