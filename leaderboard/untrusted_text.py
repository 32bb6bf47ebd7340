"""Checks and escapes text from others for a board: its characters, and its form in markdown and CSV."""

import re

from bench.core.errors import UserError

# ASCII and the letters of European names; letters of other alphabets, small capitals and marks could imitate them
LETTERS = " -~\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f"
QUOTES = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "...",
    "\u2113": "L", "\u221e": "inf", "\u03b5": "eps", "\u00d7": "x", "\u00a0": " ", "\u2212": "-",
})  # fmt: skip
SPECIAL = r"([\\`*_\[\]<>|#!&~$])"  # of markdown: code, emphasis, links, HTML, columns, math
JOINED = re.compile(r"\b(www)\.", re.IGNORECASE)
FORMULA = re.compile(r"(^|[;|,\t\r\n])(\s*['\"]?\s*)(?=[=+\-@])")


def check_line(text: str, what: str) -> str:
    """Check and return the text; UserError if it holds control characters or letters that imitate Latin ones."""
    if other := re.search(f"[^{LETTERS}]", text):
        raise UserError(f"{what} holds the character U+{ord(other[0]):04X}; only ASCII and Latin letters may be used")
    return text


def ascii_quotes(text: str) -> str:
    """Replace typographic quotes, dashes and the signs of norms by ASCII."""
    return text.translate(QUOTES)


def as_markdown(text: str) -> str:
    """Escape the text for a markdown cell: it cannot form a column, link, address, mention, math, HTML or emphasis.

    GitHub looks for mentions and addresses after it resolves escapes, so a zero-width character splits them.
    """
    escaped = re.sub(SPECIAL, r"\\\1", text)
    return JOINED.sub("\\1\u200b.", escaped.replace("@", "@\u200b").replace("://", ":\u200b//"))


def no_formula(text: str | None) -> str | None:
    """Escape text so that no spreadsheet evaluates it as a formula, whichever cell separator it uses."""
    return text and FORMULA.sub(r"\1'\2", text)
