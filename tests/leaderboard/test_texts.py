"""Text that others wrote stays text, in markdown and in CSV."""

import pytest

from bench.core.errors import UserError
from leaderboard.untrusted_text import as_markdown, check_line, no_formula


@pytest.mark.parametrize(("text", "shown"), [
    ("https://evil.example", "https:\u200b//evil.example"),
    ("see www.evil.example", "see www\u200b.evil.example"),
    ("ask @maintainer", "ask @\u200bmaintainer"),
    ("a@b.example", "a@\u200bb.example"),
    ("$x^2$", "\\$x^2\\$"),
    ("~~gone~~", "\\~\\~gone\\~\\~"),
    ("[l](http://e) <b> `c` | #1", "\\[l\\](http:\u200b//e) \\<b\\> \\`c\\` \\| \\#1"),
    ("small-cnn:width=24 (2018)", "small-cnn:width=24 (2018)"),
])  # fmt: skip
def test_markdown_makes_no_link_mention_or_math_of_it(text, shown):
    assert as_markdown(text) == shown


@pytest.mark.parametrize(("text", "shown"), [
    ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), (" =1", "' =1"), ("a;=1", "a;'=1"),
    ("a | =1", "a |' =1"), ("a,@x", "a,'@x"), ("a\t-1", "a\t'-1"), ("\"=1", "'\"=1"), ("a;;=1", "a;;'=1"),
    ("a-b = c@d", "a-b = c@d"), ("L-PER+at", "L-PER+at"), ("", ""), (None, None),
])  # fmt: skip
def test_no_cell_of_a_csv_begins_as_a_formula(text, shown):
    assert no_formula(text) == shown


@pytest.mark.parametrize("char", ["\x1b", "\n", "\u202e", "\u200b", "\u0430", "\u1d00", "\u0262", "\ufeff"])
def test_characters_that_deceive_are_refused(char):
    with pytest.raises(UserError, match=f"U\\+{ord(char):04X}"):
        check_line(f"a{char}b", "title")
    assert check_line("M\u00fcller \u0160", "title")
