"""`torchrun -m bench run`: processes of which one is killed, and the same command again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.core.files import sha256

RUN = (
    "-m", "bench", "run", "--defense", "atas", "--model", "fc1", "--epochs", "40", "--set", "batch_size=200",
    "--set", "probe_every=0", "--n-examples", "5", "--attacks", "fgsm", "--threads", "1", "--device", "cpu", "--quiet",
)  # fmt: skip


def started(out):
    """torchrun with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *RUN]
    return subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def finished(out):
    """The record of the run, and the hash of its weights."""
    process = started(out)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert printed.count("run folder:") == 1
    (path,) = out.glob("digits-*/0/record.json")
    return json.loads(path.read_text()), sha256(path.with_name("weights.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of torchrun in /proc")
def test_a_killed_training_goes_on_with_the_same_weights(tmp_path):
    record, weights = finished(tmp_path / "whole")
    assert record["training"]["computation"]["processes"] == 2
    process = started(tmp_path / "killed")
    while not list((tmp_path / "killed").glob("trainings/*/0/checkpoint.pt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    worker = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[1]
    os.kill(int(worker), signal.SIGKILL)  # torchrun ends the others
    printed = process.communicate()[0]
    assert process.returncode != 0, printed
    assert not list((tmp_path / "killed").glob("trainings/*/0/training.json"))
    assert finished(tmp_path / "killed")[1] == weights
