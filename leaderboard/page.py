"""The boards as an HTML file that holds its style, script and data. It loads only the images beside it, if any."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import PackageNotFoundError, metadata
from importlib.resources import files
from pathlib import Path
from string import Template

import msgspec

from bench.core.files import write_atomically
from bench.core.records import VERDICTS
from leaderboard.board_comparisons import Comparisons
from leaderboard.board_data import INTERVALS, STATUS_NOTES, Board, Seed
from leaderboard.training_passes import BOUNDS_NOTE
from leaderboard.witness_images import Images

# JSON without `<` cannot contain `</script` (the end of a script element) or `<!--` (which changes how it is parsed).
UNSAFE = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})

# Joined into one module in this order: top-level code may use what is above it, functions may use everything.
SCRIPTS = (
    "elements.js", "row.js", "columns.js", "state.js", "copy.js", "table.js", "axes.js", "plots.js", "entry.js",
    "pins.js", "survival.js", "comparison.js", "page.js",
)  # fmt: skip
STYLES = ("page.css", "table.css", "dialogs.css", "print.css")
NAME = "robust-bracket"


@dataclass(frozen=True, kw_only=True)
class SuiteDetails:
    """What the page shows for a suite besides its board. files: the images, by their names relative to the page."""

    comparisons: Comparisons
    images: Images | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def write_page(
    boards: Sequence[Board], folder: Path, details: Sequence[SuiteDetails] = (), repository: str | None = None
) -> Path:
    """Write FOLDER/index.html and the images, the same bytes for the same boards; returns the path of the page.

    repository: the address of the repository that holds the results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in ((name, data) for detail in details for name, data in detail.files.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, data)
    path = folder / "index.html"
    write_atomically(path, page_html(boards, details, repository).encode())
    return path


def page_html(boards: Sequence[Board], details: Sequence[SuiteDetails] = (), repository: str | None = None) -> str:
    """The HTML of the page. It holds the data as JSON, in blocks for each suite; the script shows them as text."""
    texts = {"VERDICT_TEXTS": VERDICTS, "STATUS_NOTES": STATUS_NOTES, "BOUNDS_NOTE": BOUNDS_NOTE}
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in texts.items())
    html, style, script = _part("page.html"), "\n".join(map(_part, STYLES)), constants + "\n".join(map(_part, SCRIPTS))
    blocks = [_data_block("suite", board.suite, board) for board in boards]
    for detail in details:
        blocks.append(_data_block("comparisons", detail.comparisons.suite, detail.comparisons))
        if detail.images is not None:
            blocks.append(_data_block("images", detail.images.suite, detail.images))
    return Template(html).substitute(
        policy=_policy(style, script), style=style, script=script, boards="\n".join(blocks),
        intervals=escape(INTERVALS), **_footer(boards, repository),
    )  # fmt: skip


def _footer(boards: Sequence[Board], repository: str | None) -> dict[str, str]:
    """The program with its version, the repository, the date of the newest result, and the entry for BibTeX."""
    try:
        about = metadata(NAME)
        known = {"author": about["Author"], "version": about["Version"]}
    except PackageNotFoundError:  # run from its source tree
        known = {}
    newest = max((date for board in boards for row in board.rows for date in map(_finished, row.seeds)), default="")
    link = f'<a href="{escape(repository)}" rel="noopener noreferrer">{escape(repository)}</a>' if repository else ""
    return {
        "version": f"Made by {escape(' '.join([NAME, known.get('version', '')]).strip())}.",
        "repository": f" Repository: {link}." if link else "",
        "date": f" The newest result is of {escape(newest)}." if newest else "",
        "bibtex": escape(_bibtex(known | {"year": newest[:4], "url": repository or ""})),
    }


def _finished(seed: Seed) -> str:
    return seed.provenance.get("finished", "")[: len("2026-01-01")]


def _bibtex(fields: Mapping[str, str]) -> str:
    given = {"title": f"{{{NAME}}}", **fields}
    lines = (f"  {name} = {{{value}}}," for name, value in given.items() if value)
    return "\n".join(["@software{robust_bracket,", *lines, "}"])


def _part(name: str) -> str:
    return (files("leaderboard") / "page" / name).read_text("utf-8")


def _data_block(kind: str, suite: str, data: Board | Comparisons | Images) -> str:
    text = msgspec.json.encode(data).decode().translate(UNSAFE)  # NaN and infinity become null
    return f'<script type="application/json" data-{kind}="{escape(suite)}">{text}</script>'


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy that allows this script and this style, and no other script, style or request."""
    rules = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "img-src": "'self' data:",  # the images beside the page, and its icon
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",  # assigning text as markup is an error
    }
    return "; ".join(f"{directive} {value}" for directive, value in rules.items())


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
