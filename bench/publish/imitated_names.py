"""Refuses names and titles of entries that could be mistaken for those of another entry.

The key and the description of a new entry are untrusted. Published ones are trusted.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from bench.core.errors import UserError
from leaderboard.published_results import ABOUT, About, read_about
from leaderboard.untrusted_text import check_line

DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")  # names that Windows reserves
# words and numbers that make another's name look like its next version, or its correction
VERSION = re.compile(
    r"[\s_.:()\[\]-]*(v?\d+|corrected|correct|fixed|official|original|real|true|new|final|best|verified|updated?"
    r"|revised|version|by (the )?authors?)[\s_.:()\[\]-]*"
)
VERIFIER = "bench submit"  # the author of contests of the verification itself


def check_names(results: Path, suite: str, entry: str, about: About | None, author: str | None = None) -> None:
    """UserError if the key or the title of an entry imitates that of another entry of its suite.

    Only the same maintainers may use an existing name with a version (`trades-2`, `TRADES, corrected`). author: the
    author of a pull request, who alone counts as a maintainer, because a description may claim anybody's name.
    """
    if DEVICES.fullmatch(entry) or entry.endswith("."):
        raise UserError(f"entry '{entry}' cannot be a folder on every system; choose another name")
    if about is not None:
        check_line(about.title, "title")
        if not skeleton(about.title):
            raise UserError(f"the title {about.title!a} has no letters")
    ours = set(about.maintainers if about is not None else ()) if author is None else {author}
    for other, theirs in _others(results / suite, entry):
        same = bool(ours & set(theirs.maintainers))
        if skeleton(other) == skeleton(entry):
            raise UserError(f"entry '{entry}' looks like '{other}', which exists; choose another name")
        if about is not None and {skeleton(about.title)} & {skeleton(theirs.title), skeleton(other)}:
            raise UserError(f"the title {about.title!a} is that of entry '{other}'; choose another title")
        if not same and _is_version(entry, other):
            raise UserError(f"entry '{entry}' looks like a version of '{other}', whose maintainers you are not")
        if (
            not same
            and about is not None
            and (_is_version(about.title, theirs.title) or _is_version(about.title, other))
        ):
            raise UserError(f"the title {about.title!a} looks like a version of entry '{other}', which is not yours")


def check_contest_author(name: str) -> None:
    """UserError if the author of a contest has the name of the verification."""
    if skeleton(name) == skeleton(VERIFIER):
        raise UserError(f"the author's name must not be {VERIFIER}, which is the verification's own")


def skeleton(name: str) -> str:
    """Make look-alike names equal: ignores case, accents and marks between letters; 0 is o, 1 is l, rn is m."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().casefold()
    letters = re.sub(r"[^a-z0-9]", "", letters)
    return letters.replace("rn", "m").replace("vv", "w").translate(str.maketrans("01", "ol"))


def _is_version(name: str, of: str) -> bool:
    """Whether a name is `of` with words or numbers of VERSION before or after it."""
    name, of = name.casefold(), of.casefold()
    if len(skeleton(of)) < 3 or of not in name:
        return False
    before, _, after = name.partition(of)
    rest = re.sub(r"^[\s_.:()\[\]-]+|[\s_.:()\[\]-]+$", "", f"{before} {after}".strip())
    return bool(rest) and all(VERSION.fullmatch(word) for word in re.split(r"[\s,_-]+", rest) if word)


def _others(home: Path, entry: str) -> Iterator[tuple[str, About]]:
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        if folder.is_dir() and folder.name != entry and (folder / ABOUT).exists():
            yield folder.name, read_about(folder / ABOUT)
