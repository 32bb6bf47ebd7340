"""A full disk or memory ends a command with one line: which file, and what to do."""

import errno
import os

import pytest

from bench.runs import run
from tests.end_to_end.command import bench

RUN = ("run", "--defense", "standard", "--suite", "digits", "--model", "fc1", "--n-examples", "5", "--threads", "1")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(number, monkeypatch, tmp_path):
    def full(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    done = bench(tmp_path, *RUN)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: runs/digits-standard-")
    assert "config.json: " in line
    assert "free some space and run the same command again" in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
])  # fmt: skip
def test_no_memory_is_one_line(error, monkeypatch, tmp_path):
    def used_up(*_):
        raise error

    monkeypatch.setattr(run, "evaluate", used_up)
    done = bench(tmp_path, *RUN)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the memory is used up; take a smaller batch")
    assert "Traceback" not in done.stderr
