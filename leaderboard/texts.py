"""Text that others wrote, as a board may show it: which characters it holds, and how markdown and CSV write it."""

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
    """The text; UserError if it holds control characters or letters that imitate Latin ones."""
    if other := re.search(f"[^{LETTERS}]", text):
        raise UserError(f"{what} holds the character U+{ord(other[0]):04X}; only ASCII and Latin letters may be used")
    return text


def ascii_quotes(text: str) -> str:
    """The text with typographic quotes, dashes and the signs of norms in ASCII."""
    return text.translate(QUOTES)


def as_markdown(text: str) -> str:
    """The text as a cell of markdown: it makes no column, link, address, mention, math, HTML or emphasis.

    GitHub looks for mentions and addresses after the escapes are resolved, so a character of no width parts them.
    """
    escaped = re.sub(SPECIAL, r"\\\1", text)
    return JOINED.sub("\\1\u200b.", escaped.replace("@", "@\u200b").replace("://", ":\u200b//"))


def no_formula(text: str | None) -> str | None:
    """Text that no spreadsheet evaluates as a formula, whichever character it takes to part cells."""
    return text and FORMULA.sub(r"\1'\2", text)
