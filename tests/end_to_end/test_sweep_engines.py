"""`bench sweep` on engines of other libraries, in processes of their own, and its dry run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.command import BENCH, bench, bench_process
from tests.runs.run_contents import contents

WORDS = (
    "sweep", "--suite", "digits", "--model", "fc1", "--epochs", "1", "--set", "batch_size=500", "--set",
    "probe_every=0", "--defenses", "standard,fgsm-rs", "--seeds", "0", "--attacks", "fgsm", "--n-examples", "9",
    "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The runs of the local engine."""
    folder = tmp_path_factory.mktemp("local")
    done = bench(folder, *WORDS, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "2 of 2: fgsm-rs seed 0: finished" in done.stderr
    return contents(folder / "runs")


@pytest.mark.slow
def test_jobs_of_submitit(expected, tmp_path):
    pytest.importorskip("submitit")
    options = ("--defenses", "fgsm-rs", "--engine", "slurm:cluster=local", "--jobs", "2", "--shards", "2")
    done = bench_process(tmp_path, *WORDS, *options)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "runs") == {path: each for path, each in expected.items() if "fgsm-rs" in str(path)}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_and_the_sweep_itself_are_killed(engine, expected, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray")
    words = [*BENCH, *WORDS, "--engine", engine, "--jobs", "2"]
    for victim in ("worker", "sweep", "worker"):
        sweep = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while sweep.poll() is None and not (found := workers(sweep.pid)):
            time.sleep(0.1)
        if sweep.poll() is None:
            time.sleep(1)
            os.kill(sweep.pid if victim == "sweep" else found[0], signal.SIGKILL)
        if victim == "sweep":
            sweep.wait()
            continue
        assert sweep.wait() == 0
        assert contents(tmp_path / "runs") == expected
        if victim == "worker":
            for path in (tmp_path / "runs").glob("*-fgsm-rs-*/*/record.json"):
                path.unlink()


def workers(pid):
    """The processes below `pid` that do tasks."""
    parents, words = {}, {}
    for folder in Path("/proc").iterdir():
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words[int(folder.name)] = (folder / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
    found = {pid}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(each for each in found if b"spawn_main" in words[each] or words[each].startswith(b"ray::run_task"))


def test_a_dry_run_prints_runs_and_work_and_computes_nothing(tmp_path):
    done = bench(tmp_path, *WORDS, "--seeds", "0,1", "--attacks", "pgd-50,fmn", "--n-examples", "100", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0]: line.split()[3:5] for line in done.stdout.splitlines() if " seed " in line}
    assert list(lines) == ["standard seed 0", "fgsm-rs seed 0", "standard seed 1", "fgsm-rs seed 1"]
    # 1437 images: standard training takes 1 forward and 1 backward pass of each, fgsm-rs 2 and 2
    assert lines["standard seed 0"][0] == "2.87k"
    assert lines["fgsm-rs seed 0"][0] == "5.75k"
    few, many = (float(lines[run][1].replace("k", "e3")) for run in ("standard seed 0", "fgsm-rs seed 0"))
    assert 500 < few < many < 100 * 102
    assert "no finished run has it: fmn" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_the_script_of_slurm(tmp_path):
    pytest.importorskip("submitit")
    engine = "slurm:partition=gpu:gpus=2:minutes=30:memory_gb=16:account=me:setup=module load python"
    done = bench(tmp_path, *WORDS, "--threads", "3", "--engine", engine, "--dry-run")
    assert done.returncode == 0, done.stderr
    for line in (
        "#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=2", "#SBATCH --time=30", "#SBATCH --mem=16GB",
        "#SBATCH --account=me", "#SBATCH --cpus-per-task=3", "module load python",
    ):  # fmt: skip
        assert line in done.stdout.splitlines()
    assert "submitit.core._submit" in done.stdout


@pytest.mark.parametrize(
    ("options", "module", "fact"),
    [
        (["--engine", "ray"], "ray", "pip install 'robust-bracket[ray]'"),
        (["--engine", "slurm"], "submitit", "pip install 'robust-bracket[slurm]'"),
        (["--store", "memory://x"], "fsspec.core", "pip install 'robust-bracket[store]'"),
        (["--engine", "rai"], None, "did you mean 'ray'"),
        (["--engine", "slurm:partitio=gpu"], None, "did you mean 'partition'"),
        (["--shards", "2", "--bracket", "--time-limit", "10s"], None, "leave out one of them"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(options, module, fact, tmp_path, monkeypatch):
    if module is not None:
        monkeypatch.setitem(sys.modules, module, None)
    done = bench(tmp_path, *WORDS, *options)
    assert done.returncode == 2
    assert fact in done.stderr
    assert len(done.stderr.splitlines()) == 1
