"""CPU seconds and memory of a page of many entries with three seeds each.

python -m tests.leaderboard.large_board --entries 3000
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.cli import main as bench
from tests.publish.published import publish, table_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=3000)
    entries, draws = parser.parse_args().entries, np.random.default_rng(0)
    os.fsync = lambda _: None  # 27,000 of them take minutes, and are not what is measured
    with tempfile.TemporaryDirectory() as place:
        results = Path(place) / "results"
        for number in range(entries):
            accuracy = draws.uniform(0.3, 0.8)
            publish(results, f"entry-{number}", [table_of(draws.random(360) < accuracy) for _ in range(3)])
        start = time.process_time()
        bench(["leaderboard", "--results", str(results), "--html", str(Path(place) / "page")])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{entries} entries: {time.process_time() - start:.1f} CPU s, at most {peak:.2f} GB")


if __name__ == "__main__":
    main()
