"""`bench submit --reproduces`: a maintainer of a board has trained an entry's recipe again.

The runs are trusted, because the maintainer has made them. The published entry is untrusted.
"""

import time
from collections.abc import Sequence
from math import isclose
from pathlib import Path

import numpy as np

from bench.core.errors import CheckError, UserError
from bench.core.example_table import survivors
from bench.core.files import read_arrays
from bench.core.record_files import TABLE, find_records, read_run
from bench.core.records import Record
from bench.publish.static_checks import check_author
from leaderboard.published_results import check_name, read_entry
from leaderboard.significance import prediction
from leaderboard.verification_files import Reproduction, write_reproduction

PASSES = 0.05  # relative difference allowed between the training passes of the new seeds and of the entry
LEVEL = 0.99  # level of the entry's prediction interval, which must contain the mean of the new seeds


def reproduce(results: Path, place: str, runs: Path, by: str) -> Path:
    """Write reproduced.json of SUITE/ENTRY; returns it. CheckError if the new seeds differ from the entry's."""
    suite, _, name = place.partition("/")
    home = results / check_name(suite, "suite") / check_name(name, "entry")
    if not home.is_dir():
        raise UserError(f"{place} is not in {results}; `bench leaderboard` lists the entries")
    check_author(by)
    entry, folders = read_entry(home, suite), find_records([runs], strict=True)
    if not entry.recipe or len(entry.runs) < 2:
        raise UserError(f"{place} is no recipe with several seeds, so there is nothing to train again")
    records = [read_run(folder) for folder in folders]
    first = entry.runs[0].record
    for record in records:
        if record.config_hash != first.config_hash:
            raise UserError(f"seed {record.seed} has the config {record.config_hash}, the entry {first.config_hash}")
    tables = [read_arrays(folder / TABLE) for folder in folders]
    n = first.n_examples
    for what, published, new in (
        ("clean", [run.clean for run in entry.runs], [table["clean"] for table in tables]),
        ("attacked", [run.robust for run in entry.runs], [survivors(table) for table in tables]),
    ):
        low, high = prediction(np.array([flags.mean() for flags in published]), len(new), LEVEL, 1 / n)
        mean = _mean(new)
        if not low <= mean <= high:
            raise CheckError(
                f"refused: the new seeds have {mean:.1%} {what}, those of {place} predict [{float(low):.1%}, "
                f"{float(high):.1%}]"
            )
    if not isclose(ours := _passes(records), theirs := _passes([run.record for run in entry.runs]), rel_tol=PASSES):
        raise CheckError(f"refused: the new seeds took {ours:.0f} passes, those of {place} claim {theirs:.0f}")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    seeds = sorted(record.seed for record in records)
    return write_reproduction(home, Reproduction(by=by, seeds=seeds, finished=now))


def _passes(records: Sequence[Record]) -> float:
    """Forward and backward passes of a training, the mean over seeds."""
    counts = [each.training.forwards + each.training.backwards for each in records if each.training is not None]
    return float(np.mean(counts))


def _mean(columns: Sequence[np.typing.NDArray[np.bool_]]) -> float:
    return float(np.mean([column.mean() for column in columns]))
