"""Reads the files that `bench submit` adds to a run, from a pull request: checked.json, contests.

All of them are untrusted. They are read like the rest of a submission and derived once more (examine.py).
"""

import re
from pathlib import Path

from bench.core.errors import UserError
from bench.publish.untrusted_files import MIB, check_file, check_npz, errors_as_one_line, read_json
from leaderboard.published_results import CONTESTS, Contest, read_contest
from leaderboard.untrusted_text import check_line
from leaderboard.verification_files import CHECKED, Checked, read_checked

PUBLISHED = (CHECKED, CONTESTS)  # names in the folder of a published seed, beside those of a run
MAX_CHECKED, MAX_CONTESTS, MAX_WITNESSES = 8 * MIB, 16, 64 * MIB
CONTEST = re.compile(r"[0-9a-f]{12}\.(json|npz)")


def read_published_seed(folder: Path) -> tuple[Checked, list[Contest]]:
    """Read checked.json of a seed and the contests that come with it; UserError if they are malformed."""
    with errors_as_one_line(CHECKED):
        if not (folder / CHECKED).exists():
            raise UserError(f"{folder} has no {CHECKED}; publish the run with `bench submit`, which writes it")
        read_json(folder / CHECKED, MAX_CHECKED)
        checked = read_checked(folder)
        if checked is not None and checked.reason is not None:
            check_line(checked.reason, "the reason")
    assert checked is not None
    return checked, _read_contests(folder)


def published_files(folder: Path) -> dict[str, int]:
    """Check that the files of PUBLISHED in a seed's folder are regular and small enough; name -> its largest size."""
    home = folder / CONTESTS
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        raise UserError(f"{home.name} is not a folder")
    names = sorted(path.name for path in home.iterdir()) if home.is_dir() else []
    if len(names) > MAX_CONTESTS:
        raise UserError(f"{home.name} has {len(names)} files; at most {MAX_CONTESTS} are read")
    sizes = {CHECKED: MAX_CHECKED}
    for name in names:
        if not CONTEST.fullmatch(name):
            raise UserError(f"{name!a} does not belong to a contest; allowed are HASH.json and HASH.npz")
        sizes[f"{CONTESTS}/{name}"] = MAX_WITNESSES if name.endswith(".npz") else MIB
    for name, most in sizes.items():
        check_file(folder / name, most)
    return sizes


def _read_contests(folder: Path) -> list[Contest]:
    contests = []
    for path in (folder / name for name in published_files(folder) if name != CHECKED):
        with errors_as_one_line(path.name):
            if path.suffix == ".npz":
                check_npz(path, MAX_WITNESSES)
                continue
            read_json(path, MIB)
            contests.append(read_contest(path))
            check_line(contests[-1].by, "the author of a contest")
    return contests
