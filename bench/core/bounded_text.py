"""Limits the nesting depth and the number of parts of JSON and TOML before they are parsed. Imports no torch.

The time and memory of a parser grow faster than a hostile file: a TOML key of 30,000 parts takes gigabytes. Strings
and comments are skipped, and brackets and dots are counted in what is left, in one pass.
"""

import re
from pathlib import Path

from bench.core.errors import UserError

DEEPEST = 16  # levels
MOST = 200_000  # lists and objects of a JSON text
MOST_PARTS = 4  # of a TOML key
LARGEST_HEADER = 16 * 2**20  # bytes of the header of a .safetensors file

JSON_STRING = re.compile(rb'"(?:[^"\\]|\\(?:.|\Z))*+(?:"|\Z)', re.DOTALL)
TOML_STRING_OR_COMMENT = re.compile(
    rb'"""(?:[^"\\]|\\(?:.|\Z)|"(?!""))*+(?:"""|\Z)'
    rb"|'''(?:[^']|'(?!''))*+(?:'''|\Z)"
    rb'|"(?:[^"\\\n]|\\(?:.|\Z))*+(?:"|(?=\n)|\Z)'
    rb"|'[^'\n]*+(?:'|(?=\n)|\Z)"
    rb"|#[^\n]*+",
    re.DOTALL,
)
NO_BRACKET = re.compile(rb"[^][{}]+")


def check_json(text: bytes, what: str) -> None:
    """UserError if JSON is nested deeper than DEEPEST, or has more than MOST lists and objects."""
    _check_brackets(NO_BRACKET.sub(b"", JSON_STRING.sub(b"", text)), what)


def check_toml(text: bytes, what: str) -> None:
    """UserError if TOML is nested deeper than DEEPEST, or has a key of more than MOST_PARTS parts."""
    plain = TOML_STRING_OR_COMMENT.sub(b"", text)
    _check_brackets(NO_BRACKET.sub(b"", plain), what)
    if re.search(rb"(?:\.[^.\n=,]*+){%d}" % MOST_PARTS, plain):
        raise UserError(f"{what} has a key of more than {MOST_PARTS} parts")


def _check_brackets(brackets: bytes, what: str) -> None:
    depth = 0
    for opens in map(b"[{".__contains__, brackets):
        depth += 1 if opens else -1
        if depth > DEEPEST:
            raise UserError(f"{what} is nested too deep; at most {DEEPEST} levels are allowed")
    if len(brackets) > 2 * MOST:
        raise UserError(f"{what} has more than {MOST} lists and objects")


def check_safetensors_header(path: Path) -> None:
    """UserError if the header of a .safetensors file is too long, too deep or cut off."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(LARGEST_HEADER, path.stat().st_size - 8):
            limit = f"at most {LARGEST_HEADER}, and no more than the file has, are allowed"
            raise UserError(f"{path.name} cannot be read: its header has {length} bytes; {limit}")
        check_json(file.read(length), f"the header of {path.name}")
