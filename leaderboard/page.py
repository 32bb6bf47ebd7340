"""The boards as one HTML file that holds its style, script and data, and loads nothing else."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import msgspec

from bench.core.files import write_atomically
from bench.core.records import VERDICTS
from leaderboard.board_data import INTERVALS, STATUS_NOTES, Board

# JSON without `<` cannot contain `</script` (the end of a script element) or `<!--` (which changes how it is parsed).
UNSAFE = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})

# Joined into one module in this order: top-level code may use what is above it, functions may use everything.
SCRIPTS = ("elements.js", "row.js", "state.js", "table.js", "axes.js", "plots.js", "entry.js", "page.js")


def write_page(boards: Sequence[Board], folder: Path) -> Path:
    """Write FOLDER/index.html, the same bytes for the same boards; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    write_atomically(path, page_html(boards).encode())
    return path


def page_html(boards: Sequence[Board]) -> str:
    """The HTML of the page. It holds the boards as JSON, one block for each suite; the script shows them as text."""
    texts = {"VERDICT_TEXTS": VERDICTS, "STATUS_NOTES": STATUS_NOTES}
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in texts.items())
    html, style, script = _part("page.html"), _part("page.css"), constants + "\n".join(map(_part, SCRIPTS))
    blocks = "\n".join(map(_data_block, boards))
    return Template(html).substitute(
        policy=_policy(style, script), style=style, script=script, boards=blocks, intervals=escape(INTERVALS)
    )


def _part(name: str) -> str:
    return (files("leaderboard") / "page" / name).read_text("utf-8")


def _data_block(board: Board) -> str:
    data = msgspec.json.encode(board).decode().translate(UNSAFE)  # NaN and infinity become null
    return f'<script type="application/json" data-suite="{escape(board.suite)}">{data}</script>'


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy that allows this script and this style, and no other script, style or request."""
    rules = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "img-src": "data:",  # the icon
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",  # assigning text as markup is an error
    }
    return "; ".join(f"{directive} {value}" for directive, value in rules.items())


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
