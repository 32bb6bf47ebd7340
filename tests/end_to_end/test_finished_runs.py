"""A finished training or evaluation is used again as long as it was made by the code and the files of today."""

import json
import shutil

import numpy as np
import pytest

from bench.core.record_files import read_record
from tests.end_to_end.command import bench, bench_process
from tests.forged_records import change_record

QUICK = ("--epochs", "1", "--set", "probe_every=0", "--n-examples", "20", "--threads", "1")
RUN = ("run", "--defense", "standard", *QUICK, "--attacks", "pgd-2")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    done = bench(folder, *RUN)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(original / "runs", tmp_path / "runs")
    return tmp_path


def only_run(folder):
    (record,) = folder.glob("runs/digits*/*/record.json")
    return record.parent


def replaced(folder):
    return list(folder.glob("runs/replaced/*/*"))


def change_source(run, name):
    """As if a file had had another hash when the run was made; None: as if hashes had not been stored yet."""

    def change(record):
        if name is None:
            del record["provenance"]["source"], record["provenance"]["source_files"]
        else:
            record["provenance"]["source_files"][name] = "0" * 12

    change_record(run, change)


def test_new_additional_data_repeat_the_training_of_every_seed(tmp_path):
    rng = np.random.default_rng(0)

    def write():
        x = rng.integers(0, 256, (64, 8, 8, 1), np.uint8)
        np.savez(tmp_path / "extra.npz", x_extra=x, y_extra=rng.integers(0, 10, 64))

    def weights():
        done = bench(tmp_path, *RUN, "--set", "extra=extra.npz", "--seeds", "0,1")
        assert done.returncode == 0, done.stderr
        return {path.parent.name: path.read_bytes() for path in tmp_path.glob("runs/digits*/*/weights.safetensors")}

    write()
    first = weights()
    assert weights() == first
    write()
    assert {seed for seed, content in weights().items() if content != first[seed]} == {"0", "1"}


def test_another_number_of_threads_is_another_training(folder):
    old = read_record(only_run(folder))
    quick = [*RUN[: RUN.index("--threads")], *RUN[RUN.index("--threads") + 2 :]]
    assert "was finished already" in bench(folder, *quick).stdout
    done = bench(folder, *quick, "--threads", "2")
    assert done.returncode == 0, done.stderr
    assert "was made with --threads 1 and is made again" in done.stderr
    new = read_record(only_run(folder))
    assert (old.provenance["threads"], new.provenance["threads"]) == (1, 2)
    assert "--threads 2" in new.provenance["command"]
    assert len(list(folder.glob("runs/trainings/*/*/training.json"))) == 2
    assert len(replaced(folder)) == 1


def test_another_attack_uses_the_weights_of_the_finished_training(folder):
    weights = read_record(only_run(folder)).artifacts["weights"]
    (training,) = folder.glob("runs/trainings/*/*/training.json")
    before = training.stat().st_mtime_ns
    done = bench(folder, *RUN, "--attacks", "fgsm", "--json")
    (record,) = json.loads(done.stdout)
    assert "train standard: was finished already" in done.stderr
    assert record["artifacts"]["weights"]["sha256"] == weights.sha256
    assert list(record["attacks"]) == ["fgsm"]
    assert len(list(folder.rglob("record.json"))) == 2  # the first evaluation is still there
    assert training.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "why"), [("attacks/pgd.py", "other source (attacks/pgd.py)"), (None, "unknown source")]
)
def test_a_run_of_other_source_is_made_again_and_the_old_one_kept(name, why, folder):
    run = only_run(folder)
    change_source(run, name)
    old = read_record(run)
    done = bench(folder, *RUN)
    assert done.returncode == 0, done.stderr
    assert why in done.stderr
    assert "was finished already" not in done.stdout
    (kept,) = replaced(folder)
    assert read_record(kept) == old
    assert str(kept.relative_to(folder)) in done.stderr
    assert read_record(run).provenance["source_files"]["attacks/pgd.py"] != "0" * 12
    assert "was finished already" in bench(folder, *RUN).stdout


def test_a_replaced_run_is_in_a_table_only_if_it_is_named(folder):
    change_source(only_run(folder), "attacks/pgd.py")
    bench(folder, *RUN)
    assert len(json.loads(bench(folder, "table", "--format", "json").stdout)) == 1
    assert len(json.loads(bench(folder, "table", *map(str, replaced(folder)), "--format", "json").stdout)) == 1


def test_reuse_prints_a_run_of_other_source_and_says_so(folder):
    change_source(only_run(folder), "attacks/pgd.py")
    done = bench(folder, *RUN, "--reuse")
    assert "by other source (attacks/pgd.py)" in done.stdout
    assert not replaced(folder)


def test_force_makes_training_and_evaluation_again(folder):
    old = read_record(only_run(folder))
    done = bench(folder, *RUN, "--force")
    assert "epoch 1/1" in done.stderr
    (kept,) = replaced(folder)
    assert read_record(kept) == old
    assert read_record(only_run(folder)).artifacts["weights"] == old.artifacts["weights"]


@pytest.mark.slow
def test_a_sweep_replaces_runs_of_other_source_too(folder):
    change_source(only_run(folder), "attacks/pgd.py")
    words = ("--defenses", "standard", "--seeds", "0", "--jobs", "1", *QUICK, "--attacks", "pgd-2", "--suite", "digits")
    assert bench(folder, "sweep", *words).returncode == 0
    assert len(replaced(folder)) == 1


@pytest.mark.slow
def test_adversarial_examples_of_a_replaced_run_are_not_those_of_before(folder):
    shutil.copytree(only_run(folder), folder / "other")
    words = ("--attacks", "transfer:from=other")
    bench(folder, *RUN, *words)
    assert "was finished already" in bench(folder, *RUN, *words).stdout
    bench(folder, *RUN, "--seeds", "1")
    shutil.rmtree(folder / "other")
    (of_seed_1,) = folder.glob("runs/digits*/1")
    shutil.copytree(of_seed_1, folder / "other")
    again = bench(folder, *RUN, *words)
    assert "other/examples.npz" in again.stderr
    assert "train standard: was finished already" in again.stderr


PLUGIN = """
import sys; sys.path.insert(0, "{folder}")
import numpy, helper
from bench.api import registry
SHIFT = float(numpy.load("{folder}/shift.npy"))

@registry.attack("mine")
def mine(model, x, y):
    "Adds a constant."
    return x + helper.SIZE + SHIFT
"""


@pytest.mark.slow
def test_what_a_plugin_reads_is_part_of_the_run(folder):
    (folder / "mine.py").write_text(PLUGIN.format(folder=folder))
    (folder / "helper.py").write_text("SIZE = 0.0\n")
    np.save(folder / "shift.npy", np.float32(0))
    words = (*RUN, "--plugin", "mine.py", "--attacks", "mine")
    first = bench_process(folder, *words)
    assert first.returncode == 0, first.stderr
    (folder / "helper.py").write_text("# a comment\nSIZE = 0.0\n")
    assert "was finished already" in bench_process(folder, *words).stdout
    (folder / "helper.py").write_text("SIZE = 0.1\n")
    np.save(folder / "shift.npy", np.float32(0.1))
    again = bench_process(folder, *words)
    assert "(helper.py, shift.npy)" in again.stderr
    assert "train standard: was finished already" in again.stderr  # an attack's files do not decide the weights


MODEL = """
import numpy, torch
from torch import nn

def build(shape, classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    net.register_buffer("mean", torch.from_numpy(numpy.load("{folder}/mean.npy")))
    return net
"""


@pytest.mark.slow
def test_data_of_a_model_file_are_part_of_training_and_evaluation(folder):
    (folder / "net.py").write_text(MODEL.format(folder=folder))
    words = (*RUN, "--model", "net.py:build")
    for value in (0.0, 0.5):
        np.save(folder / "mean.npy", np.float32(value))
        done = bench(folder, *words)
        assert "epoch 1/1" in done.stderr
    assert "mean.npy" in done.stderr
    assert "was finished already" in bench(folder, *words).stdout


READS_LATER = """
from pathlib import Path
from torch.nn.functional import cross_entropy
from bench.api import Defense, TrainingConfig, registry

@registry.defense("scaled")
class Scaled(Defense[TrainingConfig]):
    "Cross-entropy times a factor."
    config_class = TrainingConfig

    def train_step(self, batch, trainer):
        factor = float(Path("{folder}/factor.txt").read_text())
        trainer.update(factor * cross_entropy(trainer.model(batch.x), batch.y))
"""


@pytest.mark.slow
def test_files_that_a_defense_reads_while_it_trains_are_part_of_the_training(folder):
    (folder / "scaled.py").write_text(READS_LATER.format(folder=folder))
    words = ("run", "--defense", "scaled", "--plugin", "scaled.py", *QUICK, "--attacks")
    for n, factor in enumerate(("1", "1", "2")):
        (folder / "factor.txt").write_text(factor)
        done = bench(folder, *words, f"pgd-{n + 1}")
        assert done.returncode == 0, done.stderr
        assert ("train scaled: was finished already" in done.stderr) == (n == 1)
    (folder / "factor.txt").write_text("3")
    again = bench(folder, *words, "pgd-3")
    assert "other source (factor.txt)" in again.stderr


FAILS = """
from bench.api import Defense, TrainingConfig, registry

@registry.defense("fails")
class Fails(Defense[TrainingConfig]):
    "Fails before the first step."
    config_class = TrainingConfig

    def prepare(self, trainer):
        trainer.bank["v"][0] = 1

    def train_step(self, batch, trainer):
        pass
"""


def test_what_a_defense_raises_is_one_line(folder):
    (folder / "fails.py").write_text(FAILS)
    done = bench(folder, "run", "--defense", "fails", "--plugin", "fails.py", *QUICK)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: defense fails failed at fails.py:10: KeyError: 'v'"]
