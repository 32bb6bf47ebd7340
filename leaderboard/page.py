"""The boards as one page: an index.html that holds its style, its script and its data, and asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import msgspec

from bench.core.files import write_atomically
from leaderboard.board_data import Board

# A script element ends at `</script`, and changes its rules at `<!--`: in JSON neither is there without a `<`.
UNSAFE = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})

# One module, in this order: what a file uses is in itself or in those before it (functions: anywhere).
SCRIPTS = ("elements.js", "row.js", "state.js", "table.js", "axes.js", "plots.js", "entry.js", "page.js")


def write_page(boards: Sequence[Board], folder: Path) -> Path:
    """Write FOLDER/index.html, the same bytes for the same boards; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    write_atomically(path, page_html(boards).encode())
    return path


def page_html(boards: Sequence[Board]) -> str:
    """The page's HTML. Of the boards it holds only JSON, a data block a suite, that the script shows as text."""
    html, style, script = _part("page.html"), _part("page.css"), "\n".join(map(_part, SCRIPTS))
    blocks = "\n".join(map(_data_block, boards))
    return Template(html).substitute(policy=_policy(style, script), style=style, script=script, boards=blocks)


def _part(name: str) -> str:
    return (files("leaderboard") / "page" / name).read_text("utf-8")


def _data_block(board: Board) -> str:
    data = msgspec.json.encode(board).decode().translate(UNSAFE)  # what is not finite becomes null
    return f'<script type="application/json" data-suite="{escape(board.suite)}">{data}</script>'


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy by which this script and this style run, and nothing else does or is fetched."""
    rules = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "img-src": "data:",  # the icon in the head
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",  # text that is assigned as markup is an error
    }
    return "; ".join(f"{directive} {value}" for directive, value in rules.items())


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
