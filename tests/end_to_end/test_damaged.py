"""One damaged character in a file of a run: it is refused, or the file is made again; it is never believed.

Excepted are texts for people, which nothing reads: log.jsonl, the logs of a sweep, CHANGES.md of a baseline, the
description of an entry, and config.json of a training, which the next run writes again.
BENCH_ALL_DAMAGES=1 makes 400 damages of each file.
"""

import os
import random
import shutil
from contextlib import chdir

import pytest
import torch

from bench.core.errors import CheckError, UserError
from bench.core.files import read_arrays
from bench.core.record_files import read_record, read_run
from bench.core.records import Artifact
from bench.core.verification import VERIFICATION, verified, write_verification
from bench.runs.train import finished_training
from bench.training.checkpoints import read_checkpoint, save_checkpoint
from bench.verify.report import Finding
from leaderboard.gate_baseline import read_runs
from leaderboard.published_results import Contest, add_contest, read_evaluated_run
from tests.killing import command
from tests.publish.published import flags, publish, table_of

DAMAGES = 400 if os.environ.get("BENCH_ALL_DAMAGES") == "1" else 40
RUN = (
    "run", "--defense", "standard", "--suite", "digits", "--model", "fc1", "--epochs", "1", "--set", "probe_every=0",
    "--set", "batch_size=500", "--n-examples", "5", "--threads", "1", "--attacks", "fgsm", "--certifiers", "crown",
    "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("finished"), torch.get_deterministic_debug_mode()
    with chdir(folder):
        command(*RUN)()
    torch.set_deterministic_debug_mode(before)
    return folder / "runs"


def believed(path, read, expected):
    """The damages of one character, or of one bit, of a file after which `read` gives something else than before."""
    whole, draws = path.read_bytes(), random.Random(path.name)
    wrong, refusals = [], []
    for n in range(DAMAGES):
        at = draws.randrange(len(whole))
        others = [whole[at] ^ (1 << draws.randrange(8))] if n % 2 else [b for b in range(32, 127) if b != whole[at]]
        damaged = whole[:at] + bytes([draws.choice(others)]) + whole[at + 1 :]
        path.write_bytes(damaged)
        try:
            if read() != expected:
                wrong.append((at, damaged[max(at - 20, 0) : at + 20]))
        except (UserError, CheckError) as error:
            refusals.append(str(error))
    path.write_bytes(whole)
    assert read() == expected
    assert not any("\n" in refusal for refusal in refusals)
    assert len(refusals) > DAMAGES / 2 or path.suffix != ".json" or path.name == "training.json"
    return wrong


def values(arrays):
    return {key: (value.dtype.str, value.shape, value.tobytes()) for key, value in arrays.items()}


@pytest.mark.slow
def test_damage_of_a_finished_run_is_refused(finished, tmp_path):
    (record,) = finished.glob("digits*/0/record.json")
    run = shutil.copytree(record.parent, tmp_path / record.parent.parent.name / "0")
    write_verification(run, [Finding("labels", "failed", "three differ")], attack="pgd-10", sample=3, seed=1)

    def read():
        return verified(read_run(run), run)

    expected = read()
    assert expected.sanity.verdict == "unreliable"
    assert {"proofs", "network"} <= set(expected.artifacts)
    names = {path.name for path in run.iterdir()} - {"log.jsonl"}
    assert {"record.json", "config.json", VERIFICATION, "weights.safetensors", "witnesses.npz"} < names
    assert {name: found for name in names if (found := believed(run / name, read, expected))} == {}


@pytest.mark.slow
def test_damage_of_a_training_makes_it_again(finished, tmp_path):
    (home,) = finished.glob("trainings/*/0")
    folder = shutil.copytree(home, tmp_path / "0")
    text = (folder / "training.json").read_text()
    identity = text.partition('"identity": "')[2].partition('"')[0]
    expected = finished_training(folder, identity)

    def read():
        return finished_training(folder, identity) or expected  # None: it is trained again

    assert expected is not None
    assert finished_training(folder, f"{identity}1") is None
    for name in ("training.json", "weights.safetensors"):
        assert believed(folder / name, read, expected) == []


def test_damage_of_a_checkpoint_begins_the_training_again(tmp_path, capsys):
    state = {"device": "cpu", "processes": 1, "model": {"w": torch.arange(50.0)}, "epoch": 3}
    save_checkpoint(tmp_path, state, "a/0")

    def read(identity="a/0"):
        found = read_checkpoint(tmp_path, torch.device("cpu"), set(state), identity)
        return None if found is None else (found["epoch"], found["model"]["w"].tolist())

    expected = read()
    assert expected == (3, list(range(50)))
    assert read("a/1") is None
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 3  # the seal does not disturb others
    assert believed(tmp_path / "checkpoint.pt", lambda: read() or expected, expected) == []
    assert "is broken, or of another training" in capsys.readouterr().err


@pytest.mark.slow
def test_damage_of_partial_results_is_noticed(finished):
    (path,) = finished.glob("digits*/0/witnesses.npz")  # stored results of batches are such files too
    assert believed(path, lambda: values(read_arrays(path)), values(read_arrays(path))) == []


def test_damage_of_published_results_is_refused(tmp_path):
    results = tmp_path / "results"
    seed = publish(results, "mine", [table_of(flags(30, 12))]) / "0"
    contest = Contest(by="Somebody", broken=[1, 2], witnesses=Artifact("ab" * 32, 9), finished="2026-11-21")
    path = add_contest(results, "digits", "mine", 0, contest)

    def read():
        run = read_evaluated_run(seed)
        return run.record, run.robust.tolist(), run.contests

    for file in (path, seed / "record.json", seed / "examples.npz"):
        assert believed(file, read, read()) == []


def test_damage_of_a_baseline_is_refused(tmp_path):
    seed = publish(tmp_path / "results", "mine", [table_of(flags(30, 12))]) / "0"

    def read():
        ((run,),) = read_runs([seed]).values()
        return run.record, values(run.table)

    for name in ("record.json", "examples.npz"):
        assert believed(seed / name, read, read()) == []


@pytest.mark.slow
def test_a_folder_under_the_name_of_another_run_is_refused(finished, tmp_path):
    (record,) = finished.glob("digits*/0/record.json")
    label = record.parent.parent.name
    for place, said in {f"{label}/1": "of seed 0", f"{label[:-12]}{'0' * 12}/0": f"of config {label[-12:]}"}.items():
        copy = shutil.copytree(record.parent, tmp_path / place)
        with pytest.raises(CheckError, match=f"it holds a run {said}"):
            read_run(copy)
    assert read_run(shutil.copytree(record.parent, tmp_path / "elsewhere")) == read_record(record.parent)
