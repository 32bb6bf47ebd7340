"""Defenses of a plugin from the command line: killed and resumed, verified and evaluated from file, or refused."""

import re
from pathlib import Path

import pytest
import torch

from bench.core import registry
from bench.core.record_files import read_record
from tests.end_to_end.command import bench, bench_killed
from tests.training import own_defenses

pytestmark = pytest.mark.slow
NAMES = {"free-at": "FreeAT", "snapshots": "SnapshotEnsemble", "latent": "LatentAttack", "late": "EnsemblePredictor"}
SETTINGS = ("--epochs", "3", "--attacks", "fgsm", "--n-examples", "40", "--threads", "1", "--set", "probe_every=0")
N, BATCHES = 1437, 12  # of the digits
PASSES = {"free-at": 3 * 4 * N, "snapshots": 3 * (own_defenses.STEPS + 1) * N}
STEPS = {"free-at": 3 * 4 * BATCHES, "snapshots": 3 * BATCHES, "latent": 3 * BATCHES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the plugin. What is registered, and the mode of torch, are as before after these tests."""
    mode, plugins = torch.get_deterministic_debug_mode(), {kind: dict(kind._plugins) for kind in registry.KINDS}
    folder = tmp_path_factory.mktemp("own")
    registered = "".join(f'\nregistry.defense("{name}")({kind})' for name, kind in NAMES.items())
    text = Path(own_defenses.__file__).read_text().replace("import Defense", "import Defense, registry")
    (folder / "own.py").write_text(text + registered)
    yield folder
    torch.set_deterministic_debug_mode(mode)
    for kind, before in plugins.items():
        kind._plugins = before


def run(name, out):
    return ("run", "--plugin", "own.py", "--defense", name, "--out", out, *SETTINGS)


def record_in(folder):
    (path,) = folder.rglob("record.json")
    return path.parent, read_record(path.parent)


@pytest.mark.parametrize("name", ["free-at", "snapshots", "latent"])
def test_it_resumes_and_is_verified_and_evaluated_from_its_files(name, folder):
    whole, killed, evaluated = (f"{each}-{name}" for each in ("whole", "killed", "evaluated"))
    done = bench(folder, *run(name, whole))
    assert done.returncode == 0, done.stderr
    assert f"{STEPS[name]:,} of {STEPS[name]:,} steps" in done.stderr
    path, record = record_in(folder / whole)
    assert record.training.forwards == PASSES.get(name, record.training.forwards)
    assert record.training.forwards == record.training.backwards
    if name == "snapshots":  # the others: tests/training/test_own_defenses.py
        bench_killed(folder, *run(name, killed), pattern="checkpoint.pt", n=2)
        done = bench(folder, *run(name, killed))
        assert done.returncode == 0, done.stderr
        _, resumed = record_in(folder / killed)
        assert resumed.artifacts["weights"].sha256 == record.artifacts["weights"].sha256
        assert resumed.training.forwards == record.training.forwards
    words = ("--plugin", "own.py", "--sample", "4", "--attack", "fgsm", "--threads", "1")
    assert bench(folder, "verify", str(path.relative_to(folder)), *words).returncode == 0
    weights = str((path / "weights.safetensors").relative_to(folder))
    words = ("--plugin", "own.py", "--attacks", "fgsm", "--n-examples", "40", "--out", evaluated, "--threads", "1")
    done = bench(folder, "eval", "--checkpoint", weights, *words)
    assert done.returncode == 0, done.stderr
    _, again = record_in(folder / evaluated)
    assert again.clean == record.clean
    assert again.attacks["fgsm"].robust_acc == record.attacks["fgsm"].robust_acc


def test_a_predictor_that_could_not_be_rebuilt_is_refused_before_the_training(folder):
    done = bench(folder, *run("late", "refused"))
    assert done.returncode == 2
    assert "EnsemblePredictor.predictor returns a network that cannot be rebuilt from its weights" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [
        path for path in (folder / "refused").rglob("*") if path.name in ("checkpoint.pt", "weights.safetensors")
    ]


MODELS = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(64, 64)
        self.again = self.stem
        self.output = nn.Linear(64, 10)

    def forward(self, x):
        return self.output(self.again(self.stem(x.flatten(1)).relu()).relu())

class Sketch(nn.Module):
    def __init__(self):
        super().__init__()
        self.random = torch.randn(64, 64)
        self.output = nn.Linear(64, 10)

    def forward(self, x):
        return self.output((x.flatten(1) @ self.random).relu())

def tied(shape, classes):
    return Tied()

def sketch(shape, classes):
    return Sketch()

def half(shape, classes):
    return Tied().half()
"""


@pytest.mark.parametrize(("function", "said"), [
    ("tied", None),
    ("sketch", "cannot be rebuilt from its weights: something else is random"),
    ("half", "half.*|float16"),
])  # fmt: skip
def test_models_that_are_trained_or_refused_in_one_line(function, said, tmp_path):
    (tmp_path / "nets.py").write_text(MODELS)
    done = bench(tmp_path, "run", "--defense", "fgsm-rs", "--model", f"nets.py:{function}", *SETTINGS)
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if said is None else 2), done.stderr
    if said is not None:
        assert re.search(said, done.stderr)
        return
    path, record = record_in(tmp_path / "runs")
    weights = str((path / "weights.safetensors").relative_to(tmp_path))
    words = ("eval", "--checkpoint", weights, "--attacks", "fgsm", "--n-examples", "40", "--out", "again")
    done = bench(tmp_path, *words)
    assert done.returncode == 2
    assert "--trust-code nets.py" in done.stderr
    done = bench(tmp_path, *words, "--trust-code", "nets.py")
    assert done.returncode == 0, done.stderr
    assert record_in(tmp_path / "again")[1].clean == record.clean
