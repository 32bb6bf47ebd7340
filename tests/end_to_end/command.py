"""Run the command as a user does: in a folder of its own, in this process or in one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from bench.cli import main

BENCH = [sys.executable, "-m", "bench"]
# kills its own process while it writes the n-th file whose path matches a pattern: the file is not renamed to its name
KILLED = """
import os, pathlib, signal, sys
from bench.cli import main

pattern, n, names, replace = sys.argv[1], int(sys.argv[2]), [], pathlib.Path.replace

def kill_or_replace(self, target):
    if pathlib.Path(target).match(pattern):
        names.append(target)
        if len(names) == n:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

pathlib.Path.replace = kill_or_replace
main(sys.argv[3:])
"""


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In this process."""
    out, err, code = StringIO(), StringIO(), 0
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        try:
            main(words)
        except SystemExit as done:
            code = int(done.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def bench_process(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    env = environment() | variables
    return subprocess.run(
        [*BENCH, *words], cwd=folder, capture_output=True, text=True, timeout=120, env=env, check=False
    )


def bench_killed(folder: Path, *words: str, pattern: str, n: int) -> None:
    """Killed while it writes the n-th file that matches the pattern."""
    command = [sys.executable, "-c", KILLED, pattern, str(n), *words]
    killed = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def environment() -> dict[str, str]:
    others = {key: value for key, value in os.environ.items() if key != "BENCH_DATA"}
    return others | {"OMP_NUM_THREADS": "1"}
