"""The files that `bench submit` adds to a run, as a pull request brings them: checked.json, contests.

Not trusted: all of them. They are read like the rest of a submission and derived once more (examine.py).
"""

import re
from pathlib import Path

import msgspec

from bench.core.errors import UserError
from bench.publish.untrusted_files import MIB, check_file, check_npz, errors_as_one_line, read_json
from leaderboard.checked_claims import CHECKED, Checked
from leaderboard.published_results import CONTESTS, Contest
from leaderboard.texts import check_line

PUBLISHED = (CHECKED, CONTESTS)  # names in the folder of a published seed, beside those of a run
MAX_CHECKED, MAX_CONTESTS, MAX_WITNESSES = 8 * MIB, 16, 64 * MIB
CONTEST = re.compile(r"[0-9a-f]{12}\.(json|npz)")


def read_published_seed(folder: Path) -> tuple[Checked, list[Contest]]:
    """What was derived of a seed, and the contests that came with it; UserError if they are malformed."""
    with errors_as_one_line(CHECKED):
        if not (folder / CHECKED).exists():
            raise UserError(f"{folder} has no {CHECKED}; publish the run with `bench submit`, which writes it")
        read_json(folder / CHECKED, MAX_CHECKED)
        checked = msgspec.json.decode((folder / CHECKED).read_bytes(), type=Checked)
        if checked.reason is not None:
            check_line(checked.reason, "the reason")
    return checked, _read_contests(folder / CONTESTS)


def _read_contests(home: Path) -> list[Contest]:
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        raise UserError(f"{home.name} is not a folder")
    paths = sorted(home.iterdir()) if home.is_dir() else []
    if len(paths) > MAX_CONTESTS:
        raise UserError(f"{home.name} has {len(paths)} files; at most {MAX_CONTESTS} are read")
    contests = []
    for path in paths:
        if not CONTEST.fullmatch(path.name):
            raise UserError(f"{path.name!a} does not belong to a contest; allowed are HASH.json and HASH.npz")
        with errors_as_one_line(path.name):
            if path.suffix == ".npz":
                check_npz(path, MAX_WITNESSES)
                continue
            check_file(path, MIB)
            read_json(path, MIB)
            contests.append(msgspec.json.decode(path.read_bytes(), type=Contest))
            check_line(contests[-1].by, "the author of a contest")
    return contests
