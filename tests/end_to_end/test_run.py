"""`bench run` and `bench eval`: tables, records, interrupted and damaged runs."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from filelock import FileLock

from bench.core.files import read_arrays, sha256
from bench.core.record_checks import check_record
from bench.core.record_files import read_record
from tests.end_to_end.command import bench, bench_killed, bench_process, environment

SETTINGS = ("--attacks", "pgd-10,fgsm", "--n-examples", "60", "--threads", "1")
QUICK = ("--epochs", "3", *SETTINGS, "--set", "probe_every=0")


@pytest.fixture(scope="module", autouse=True)
def _determinism_as_before():
    before = torch.get_deterministic_debug_mode()
    yield
    torch.set_deterministic_debug_mode(before)


def only_run(folder):
    (record,) = folder.rglob("record.json")
    return record.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One undisturbed run of atas."""
    folder = tmp_path_factory.mktemp("finished")
    done = bench(folder, "run", "--defense", "atas", *QUICK)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_table_shows_intervals_costs_and_the_run_folder(finished):
    folder, done = finished
    run, record = only_run(folder), read_record(only_run(folder))
    accuracy = f"{100 * record.attacks['pgd-10'].robust_acc:.1f}"
    for text in ("clean", "pgd-10", "fgsm", "95 % interval", "3 epochs", str(run.relative_to(folder)), accuracy):
        assert text in done.stdout
    assert "train atas" in done.stderr  # progress


def test_the_record_follows_from_its_table_and_its_files(finished):
    run = only_run(finished[0])
    record, table = read_record(run), read_arrays(run / "examples.npz")
    check_record(record, table)
    assert record.suite == "digits"
    assert record.n_examples == 60
    assert record.training.epochs == 3
    for artifact in record.artifacts.values():
        assert sha256(run / artifact.path) == artifact.sha256
    steps = [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert not [p.name for p in run.iterdir() if p.name.startswith(".") or p.name in ("parts", "checkpoint.pt")]


def test_a_finished_run_is_printed_again_and_not_computed(finished):
    folder, done = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = bench(folder, "run", "--defense", "atas", *QUICK)
    table = done.stdout.split("run folder")[0]
    assert again.stdout.startswith(table)
    assert "was finished already" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def results(run):
    """All of a run that must not depend on when and how often it was started."""
    record = read_record(run)
    table = {key: column.tobytes() for key, column in read_arrays(run / "examples.npz").items()}
    metrics = [record.clean, record.worst, {spec: a.robust_acc for spec, a in record.attacks.items()}]
    passes = {spec: (a.forwards, a.backwards) for spec, a in record.attacks.items()}
    log = [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in (run / "log.jsonl").read_text().splitlines()
    ]
    return table, metrics, passes, record.artifacts, record.training.forwards, log


@pytest.mark.slow
def test_the_same_command_in_another_process_gives_the_same_results(finished, tmp_path):
    done = bench_process(tmp_path, "run", "--defense", "atas", *QUICK)
    assert done.returncode == 0, done.stderr
    assert results(only_run(tmp_path)) == results(only_run(finished[0]))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders of two runs, killed in the training and in the evaluation."""
    folders = {}
    for moment, pattern in {"training": "checkpoint.pt", "evaluation": "parts/*/*.npz"}.items():
        folders[moment] = tmp_path_factory.mktemp(moment)
        bench_killed(folders[moment], "run", "--defense", "atas", *QUICK, pattern=pattern, n=2)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_a_killed_run_continues_and_ends_like_an_undisturbed_one(moment, killed, finished, tmp_path):
    shutil.copytree(killed[moment], tmp_path, dirs_exist_ok=True)
    assert bool(list(tmp_path.rglob("weights.safetensors"))) == (moment == "evaluation")
    assert len(list(tmp_path.rglob("checkpoint.pt"))) == (moment == "training")
    assert len(list(tmp_path.rglob("parts/*/*.npz"))) == (moment == "evaluation")
    assert list(tmp_path.rglob(".*.part"))
    assert not list(tmp_path.rglob("record.json"))
    done = bench(tmp_path, "run", "--defense", "atas", *QUICK)
    assert done.returncode == 0, done.stderr
    assert results(only_run(tmp_path)) == results(only_run(finished[0]))
    assert not list(tmp_path.rglob(".*.part"))


def change_record(run):
    path = run / "record.json"
    path.write_text(path.read_text().replace('"robust_acc"', '"robust_acc": 0.99, "was"', 1))


def change_accuracy(run):
    plain = json.loads((run / "record.json").read_text())
    plain["attacks"]["fgsm"]["robust_acc"] = 0.99
    (run / "record.json").write_text(json.dumps(plain))


@pytest.mark.parametrize("tamper", [
    change_record,
    change_accuracy,
    lambda run: (run / "examples.npz").unlink(),
    lambda run: (run / "witnesses.npz").unlink(),
    lambda run: (run / "weights.safetensors").write_bytes(b"x"),
])  # fmt: skip
def test_a_finished_run_that_was_changed_is_not_printed(tamper, finished, tmp_path):
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    tamper(only_run(tmp_path))
    for words in (("run", "--defense", "atas", *QUICK), ("table",)):
        done = bench(tmp_path, *words)
        assert done.returncode in (1, 2)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "broken"), [
    ("training", "checkpoint.pt"), ("evaluation", "training.json"), ("evaluation", "weights.safetensors"),
    ("evaluation", "parts"),
])  # fmt: skip
def test_a_broken_file_of_an_unfinished_run_is_written_again(moment, broken, killed, finished, tmp_path):
    shutil.copytree(killed[moment], tmp_path, dirs_exist_ok=True)
    pattern = "parts/*/*.npz" if broken == "parts" else f"trainings/*/*/{broken}"
    (path,) = tmp_path.rglob(pattern)
    path.write_bytes(b"garbage")
    done = bench(tmp_path, "run", "--defense", "atas", *QUICK)
    assert done.returncode == 0, done.stderr
    assert results(only_run(tmp_path)) == results(only_run(finished[0]))


def test_training_under_l1_has_no_probe_and_works(tmp_path):
    words = (
        "--norm",
        "L1",
        "--eps",
        "1",
        "--attacks",
        "random-noise",
        "--n-examples",
        "20",
        "--epochs",
        "1",
        "--threads",
        "1",
    )
    done = bench(tmp_path, "run", "--defense", "standard", *words)
    assert done.returncode == 0, done.stderr
    assert "pgd" not in (only_run(tmp_path) / "log.jsonl").read_text()


def test_two_processes_do_not_work_on_one_run(finished, tmp_path):
    folder = tmp_path / only_run(finished[0]).relative_to(finished[0])
    folder.mkdir(parents=True)
    with FileLock(folder.parent / ".0.lock"):
        done = bench(tmp_path, "run", "--defense", "atas", *QUICK)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert str(folder.relative_to(tmp_path)) in done.stderr
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_several_seeds_give_a_mean_and_a_deviation(tmp_path):
    done = bench(tmp_path, "run", "--defense", "standard", *QUICK, "--seeds", "0,1")
    assert done.returncode == 0, done.stderr
    assert "mean of 2" in done.stdout
    assert "+-" in done.stdout
    table = bench(tmp_path, "table", "--format", "json")
    assert [(entry["seed"], entry["seeds"]) for entry in json.loads(table.stdout)] == [
        (0, [0]), (1, [1]), (None, [0, 1]),
    ]  # fmt: skip


def test_eval_of_our_own_weights_gives_the_same_predictions(finished, tmp_path):
    run = only_run(finished[0])
    done = bench(tmp_path, "eval", "--checkpoint", str(run), *SETTINGS)  # the folder of a run
    assert done.returncode == 0, done.stderr
    ours, theirs = read_arrays(run / "examples.npz"), read_arrays(only_run(tmp_path) / "examples.npz")
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_several_eps_and_norms_give_a_column_each_and_their_union(finished, tmp_path):
    weights = only_run(finished[0]) / "weights.safetensors"
    words = (
        "--eps",
        "0.1,0.2",
        "--attacks",
        "pgd-10,pgd-10:norm=L2:eps=0.5",
        "--n-examples",
        "60",
        "--threads",
        "1",
        "--json",
    )
    (record,) = json.loads(bench(tmp_path, "eval", "--checkpoint", str(weights), *words).stdout)
    accs = {spec: result["robust_acc"] for spec, result in record["attacks"].items()}
    assert list(accs) == ["pgd-10", "pgd-10:norm=L2:eps=0.5", "pgd-10:eps=0.2"]
    assert accs["pgd-10:eps=0.2"] < accs["pgd-10"]
    assert record["worst"]["robust_acc"] == accs["pgd-10"]
    assert record["union"]["robust_acc"] <= min(accs.values())
    assert record["threat"]["eps"] == 0.1


@pytest.mark.parametrize(
    ("words", "hint"), [(("--dataset", "fake"), "give its data set"), (("--model", "fc1"), "leave out")]
)
def test_eval_of_our_own_weights_refuses_other_data_and_another_model(words, hint, finished, tmp_path):
    weights = str(only_run(finished[0]) / "weights.safetensors")
    done = bench(tmp_path, "eval", "--checkpoint", weights, "--attacks", "none", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert hint in done.stderr


@pytest.mark.slow
def test_eval_of_a_subnetwork_builds_its_masks_again(tmp_path):
    quick = ("--attacks", "fgsm", "--n-examples", "20", "--threads", "1")
    settings = ("--set", "r=0.5", "--set", "validation=0", "--set", "select=last", "--epochs", "1")
    assert bench(tmp_path, "run", "--defense", "binary-subnet", *settings, *quick).returncode == 0
    run = only_run(tmp_path)
    done = bench(tmp_path, "eval", "--checkpoint", str(run / "weights.safetensors"), *quick, "--out", "again")
    assert done.returncode == 0, done.stderr
    ours, theirs = read_arrays(run / "examples.npz"), read_arrays(only_run(tmp_path / "again") / "examples.npz")
    assert np.array_equal(ours["prediction"], theirs["prediction"])


PLUGIN = """
from dataclasses import dataclass
from torch.nn.functional import cross_entropy
from bench.api import Attack, Defense, TrainingConfig, registry

@registry.defense("mine")
class Mine(Defense[TrainingConfig]):
    '''Mine.

    Evidence: not yet reproduced.
    '''
    config_class = TrainingConfig

    def train_step(self, batch, trainer):
        trainer.update(cross_entropy(trainer.model(batch.x), batch.y))

@registry.attack("nothing")
@dataclass(frozen=True, kw_only=True)
class Nothing(Attack):
    '''Does nothing.'''
    def perturb(self, model, batch, threat, *, generator):
        return batch.x
"""


@pytest.mark.slow
def test_a_plugin_adds_a_defense_and_an_attack(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = ("--defense", "mine", "--plugin", "mine.py", "--epochs", "1", "--attacks", "nothing", "--n-examples", "40")
    done = bench_process(tmp_path, "run", *words)
    assert done.returncode == 0, done.stderr
    record = read_record(only_run(tmp_path))
    assert record.attacks["nothing"].robust_acc == record.clean.acc
    listed = bench_process(tmp_path, "list", "defenses", "--json", "--plugin", "mine.py")
    assert "mine" in json.loads(listed.stdout)


def test_a_training_that_diverges_stops_with_one_line_and_no_record(tmp_path):
    done = bench(tmp_path, "run", "--defense", "standard", *QUICK, "--set", "lr=1e30")
    assert done.returncode == 1
    assert "the loss is" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("record.json"))
    assert not list(tmp_path.rglob("weights.safetensors"))


@pytest.mark.parametrize("words", [["--help"], ["list"]])
def test_help_and_list_do_not_load_torch(words):
    code = f"import sys; sys.modules['torch'] = None; from bench.cli import main; main({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
