"""Tables fit the terminal and lose nothing."""

import random
import re
from itertools import chain

import pytest

from leaderboard.render import render, terminal_width, wrapped

WORDS = ("64.7", "[59.5, 69.7]", "no", "warning", "signs", "small-cnn:width=24:hidden=256", "x" * 50, "a/b,c:d", "")


def words(text):
    return sorted(re.sub(r"[\s-]", "", text))


@pytest.mark.parametrize("width", [24, 40, 80, 120])
@pytest.mark.parametrize("seed", range(10))
def test_no_line_is_wider_than_the_terminal_and_no_character_is_lost(width, seed):
    draw = random.Random(seed)
    n = draw.randrange(2, 15)
    header, *rows = (["key", *(" ".join(draw.choices(WORDS, k=2)) for _ in range(n))] for _ in range(4))
    text = render(header, rows, align="l" + "r" * n, width=width)
    assert max(map(len, text.splitlines())) <= width
    parts = text.count("key") // 4  # the key column is repeated
    assert words(text) == words(" ".join([*header, *chain(*rows)]) + "key" * 4 * (parts - 1))


def test_a_table_that_fits_has_a_line_a_row():
    text = render(["name", "acc"], [["one", "64.7 [59.5, 69.7]"], ["two", "5.0"]], align="lr", width=80)
    assert text.splitlines() == [
        "name                acc",
        "----  -----------------",
        "one   64.7 [59.5, 69.7]",
        "two                 5.0",
    ]


def test_intervals_are_not_broken_and_keys_are_repeated():
    row = ["two words", *["64.7 [59.5, 69.7]"] * 5]
    text = render(["name", *"abcde"], [row], align="lrrrrr", width=40)
    assert text.count("[59.5, 69.7]") == 5
    assert text.count("name") == 3
    assert "two" in text.splitlines()[2]


def test_without_a_width_it_is_markdown():
    assert render(["a"], [["b " * 100]]).splitlines()[1].startswith("|--")
    assert terminal_width() is None  # tests have no terminal


def test_wrapped_lines_keep_their_indent():
    text = "verdict: suspect\n  " + "word " * 30
    lines = wrapped(text, 40).splitlines()
    assert lines[0] == "verdict: suspect"
    assert lines[1].startswith("  word")
    assert all(line.startswith("    word") for line in lines[2:])
    assert max(map(len, lines)) <= 40
    assert wrapped(text, None) == text
