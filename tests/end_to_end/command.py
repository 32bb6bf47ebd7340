"""Run the command in a process and a folder of its own, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCH = [sys.executable, "-m", "bench"]


def bench(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment() | variables
    return subprocess.run(
        [*BENCH, *words], cwd=folder, capture_output=True, text=True, timeout=120, env=env, check=False
    )


def environment() -> dict[str, str]:
    others = {key: value for key, value in os.environ.items() if key != "BENCH_DATA"}
    return others | {"OMP_NUM_THREADS": "1"}
