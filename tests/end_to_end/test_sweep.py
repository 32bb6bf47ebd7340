"""`bench sweep`: every defense and seed runs once, in a process of its own, with the result of `bench run`."""

import json
import os
import signal
import subprocess
import time

import pytest

from bench.core.record_files import find_records, read_run
from tests.end_to_end.command import BENCH, bench, bench_process

OPTIONS = ["--suite", "digits", "--epochs", "1", "--attacks", "fgsm", "--n-examples", "60"]
BROKEN = '''
from bench.api import Defense, TrainingConfig, registry

@registry.defense("broken")
class Broken(Defense[TrainingConfig]):
    """Fails in its first step."""
    config_class = TrainingConfig

    def train_step(self, batch, trainer):
        raise RuntimeError("no such luck")
'''


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    done = bench(folder, "sweep", *OPTIONS, "--defenses", "standard,fgsm-rs", "--seeds", "0,1", "--out", "runs")
    return folder, done


@pytest.mark.slow
def test_every_run_gives_a_record_and_a_row_of_the_table(swept):
    folder, done = swept
    assert done.returncode == 0, done.stderr
    cells = {(read_run(run).defense, read_run(run).seed) for run in find_records([folder / "runs"])}
    assert cells == {(name, seed) for name in ("standard", "fgsm-rs") for seed in (0, 1)}
    assert done.stdout.count("| standard") == 3  # two seeds and their mean
    assert "sweep, 2 at a time" in done.stderr or "sweep, 1 at a time" in done.stderr


@pytest.mark.slow
def test_a_run_of_a_sweep_equals_a_single_run(swept):
    folder, _ = swept
    alone = bench(folder, "run", "--defense", "standard", *OPTIONS, "--seeds", "1", "--out", "alone")
    assert alone.returncode == 0, alone.stderr
    (run,) = find_records([folder / "alone"])
    (cell,) = (run for run in find_records([folder / "runs"]) if run.match("*standard*/1"))
    one, other = read_run(run), read_run(cell)
    assert (one.artifacts["weights"], one.artifacts["examples"]) == (
        other.artifacts["weights"],
        other.artifacts["examples"],
    )
    assert run.parent.name == cell.parent.name


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(swept):
    folder, done = swept
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    again = bench(folder, "sweep", *OPTIONS, "--defenses", "standard,fgsm-rs", "--seeds", "0,1", "--out", "runs")
    assert again.stdout == done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_failing_run_does_not_stop_the_others_and_fails_the_sweep(tmp_path):
    (tmp_path / "mine.py").write_text(BROKEN)
    options = ["--plugin", "mine.py", "--defenses", "broken,standard", "--seeds", "0", "--out", "runs", "--json"]
    done = bench_process(tmp_path, "sweep", *OPTIONS, *options)
    assert done.returncode == 1
    assert [record["defense"] for record in json.loads(done.stdout)] == ["standard"]
    for fact in ("broken seed 0", "RuntimeError: no such luck", "runs/logs/digits-broken-0.log"):
        assert fact in done.stderr
    assert "broken seed 0" in done.stderr.splitlines()[-1]
    assert "Traceback" in (tmp_path / "runs/logs/digits-broken-0.log").read_text()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["--suite", "digit"], "'digits'"),
        (["--suite", "digits", "--defenses", "standard,nothing"], "'nothing'"),
        (["--suite", "digits", "--seeds", "0,0.5"], "--seeds"),
        (["--suite", "digits", "--jobs", "0"], "--jobs"),
        ([], "--suite"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, words, fact):
    done = bench(tmp_path, "sweep", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert fact in done.stderr


@pytest.mark.slow
def test_no_process_outlives_a_sweep_that_is_killed(tmp_path):
    words = ["sweep", "--suite", "digits", "--defenses", "standard", "--seeds", "0", "--epochs", "100000"]
    sweep = subprocess.Popen([*BENCH, *words, "--out", "runs"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    log = tmp_path / "runs/logs/digits-standard-0.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "train standard" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    children = _children(sweep.pid)
    assert children
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    while any(_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def _alive(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")
