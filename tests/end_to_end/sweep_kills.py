"""Kill the workers and the head of a sweep at random moments, and compare what it ends with.

    python -m tests.end_to_end.sweep_kills --engine ray --kills 20

runs 12 cells with the local engine and with the engine named, whose processes are killed. Not a test: it takes minutes.
"""

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.end_to_end.command import BENCH
from tests.end_to_end.test_sweep_engines import workers
from tests.runs.run_contents import contents

WORDS = (
    "sweep", "--suite", "digits", "--defenses", "standard,fgsm-rs,pgd-at,atas", "--seeds", "0,1,2", "--epochs", "20",
    "--attacks", "pgd-50,bracket-attack", "--device", "cpu", "--jobs", "2",
)  # fmt: skip


def start(folder: Path, engine: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    with (folder / "output.log").open("ab") as log:
        return subprocess.Popen([*BENCH, *WORDS, "--engine", engine], cwd=folder, stdout=log, stderr=log)


def sweep_with_kills(folder: Path, engine: str, kills: int, numbers: random.Random) -> Counter[str]:
    """Run the sweep until it ends; the number of killed workers and heads."""
    killed: Counter[str] = Counter()
    while True:
        head = start(folder, engine)
        while killed.total() < kills and (found := next_workers(head)):
            time.sleep(numbers.uniform(0, 10))
            victim = numbers.choice(("worker", "head"))
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(head.pid if victim == "head" else numbers.choice(found), signal.SIGKILL)
                killed[victim] += 1
        if head.wait() == 0:
            return killed


def next_workers(head: subprocess.Popen[bytes]) -> list[int]:
    """Those that are at work, as soon as there are some; none once the sweep has ended."""
    while head.poll() is None:
        if found := workers(head.pid):
            return found
        time.sleep(0.1)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="ray")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        expected, tried = Path(place) / "local", Path(place) / "tried"
        assert start(expected, "local").wait() == 0
        killed = sweep_with_kills(tried, options.engine, options.kills, random.Random(options.seed))
        one, other = contents(expected / "runs"), contents(tried / "runs")
    differing = sorted(str(path) for path in one.keys() | other.keys() if one.get(path) != other.get(path))
    print(f"{killed['worker']} workers and {killed['head']} heads killed")
    print(f"{len(one)} files, {len(differing)} of them differ")
    for path in differing:
        print(path)


if __name__ == "__main__":
    main()
