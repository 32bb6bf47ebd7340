"""The command as a user runs it: in a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCH = [sys.executable, "-m", "bench.cli"]


def bench(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment() | variables
    return subprocess.run(
        [*BENCH, *words], cwd=folder, capture_output=True, text=True, timeout=120, env=env, check=False
    )


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "BENCH_DATA"}
    return kept | {"OMP_NUM_THREADS": "1"}
