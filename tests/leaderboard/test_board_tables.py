"""The same board in four forms; what an entry says of itself stays text."""

import csv
import io
import json

import msgspec
import pytest

from leaderboard.board_data import INTERVALS, Board, Certificates, Row
from leaderboard.board_tables import rank_text, render_boards
from leaderboard.estimates import Estimate
from tests.leaderboard.boards import cost, run


def row(name, acc, **changes):
    values = {
        "name": name, "title": name, "kind": "recipe", "status": "re-checkable", "dataset": "digits", "norm": "Linf",
        "eps": 0.2, "threat": "Linf 0.2", "architecture": "small-cnn", "parameters": 9, "extra_data": False,
        "clean": Estimate(acc=0.98, low=0.96, high=0.99, interval_of="recipe", spread=0.005), "certified": None,
        "attacked": Estimate(
            acc=acc, low=acc - 0.05, high=acc + 0.05, interval_of="recipe", spread=0.01, new_seed=(acc - 0.1, acc + 0.1)
        ),
        "certificates": Certificates(proven=12, again=0, solver=1.5, open=0, unchecked=0),
        "attacked_by": ("autoattack",), "open": 12.0, "truncated": True, "seeds": (run(0), run(1), run(2)),
        "cost": cost(172_440.0), "rank": 1, "rank_low": 1,
        "rank_high": 2, "group": 1, "verdict": "no-warnings",
    }  # fmt: skip
    return Row(**(values | changes))


HOSTILE = "a | b `c` *d* <script>x</script> [l](http://e) \\end{tabular} & 50% _u_ \n new"
ROWS = (
    row("one", 0.7),
    row("two", 0.69),
    row("three", 0.5, rank=3, rank_low=3, rank_high=3, group=2),
    row("four", 0.3, rank=4, rank_low=4, rank_high=4, group=3, title=HOSTILE),
    row(
        "reported",
        0.4,
        kind="reported",
        rank=None,
        rank_low=None,
        rank_high=None,
        group=None,
        attacked=None,
        clean=Estimate(acc=0.9, low=0.9, high=0.9, interval_of=None),
        attacked_by=(),
        certificates=None,
        open=None,
        seeds=(),
        cost=None,
    ),
)
BOARD = Board(suite="digits", summary="small digits", rule="the rule", rows=ROWS)


def test_markdown_has_a_line_an_entry():
    lines = render_boards([BOARD], "markdown").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 2 + len(ROWS)  # entries without a rank have a table of their own
    assert lines[lines.index("Entries without a rank:") + 2 :][:3] == table[-3:]
    assert "1-2" in table[2]
    assert [cell.strip() for cell in table[2].split("|")[4:14]] == [
        "9", "30", "172k", "98.0 +- 0.5 [96.0, 99.0]", "", "12 proven, 1.5 trusted solver", "70.0 +- 1.0 [65.0, 75.0]",
        "autoattack", "12 cut", "recipe, 3 seeds",
    ]  # fmt: skip
    assert [cell.strip() for cell in table[-1].split("|")[1:13]] == [
        "-",
        "reported (reported)",
        "small-cnn",
        "9",
        "",
        "",
        "90.0",
        *[""] * 5,
    ]
    assert lines[0] == "## digits"
    assert lines[-3] == "the rule"
    assert lines[-1] == INTERVALS


def test_a_suspect_entry_names_the_checks_that_warned():
    reasons = ("bracket-better: the bracket breaks 26 of 305", "bracket-better: again")
    suspect = msgspec.structs.replace(ROWS[0], verdict="suspect", reasons=reasons)
    assert "| suspect (bracket-better) |" in render_boards(
        [msgspec.structs.replace(BOARD, rows=(suspect,))], "markdown"
    )
    many = msgspec.structs.replace(suspect, reasons=tuple(f"check-{name}: why" for name in "abcdef"))
    assert "check-a" not in render_boards([msgspec.structs.replace(BOARD, rows=(many,))], "markdown")


@pytest.mark.parametrize("width", [80, 120])
def test_a_board_fits_the_terminal(width):
    text = render_boards([BOARD], "markdown", width)
    assert max(map(len, text.splitlines())) <= width
    assert "\\_" not in text  # an escape of markdown


def test_hostile_text_makes_no_cells_links_or_html_in_markdown():
    line = next(line for line in render_boards([BOARD], "markdown").splitlines() if "script" in line)
    assert line.count("|") - line.count("\\|") == 17
    for sign in "<>[]*`_&":
        assert line.count(sign) == line.count(f"\\{sign}") or sign in "[]"
    assert "\\[l\\](http:\u200b//e)" in line


def test_latex_parts_the_groups_and_escapes_what_is_somebodys():
    text = render_boards([BOARD], "latex")
    body = text[text.index("\\midrule") :].splitlines()
    assert [line.split("&")[1].strip()[:5] if "&" in line else line for line in body] == [
        "\\midrule", "one", "two", "\\addlinespace", "three", "\\addlinespace", "a | b", "\\midrule", "repor",
        "\\bottomrule",
        "\\end{tabular}",
    ]  # fmt: skip
    assert text.count("\\end{tabular}") == 1
    assert "50\\%" in text
    assert text.startswith("% digits: the rule\n")


def test_csv_holds_fractions_and_no_formula():
    tricky = msgspec.structs.replace(ROWS[0], title="=1+1", licence="@x")
    text = render_boards([msgspec.structs.replace(BOARD, rows=(tricky, *ROWS[1:]))], "csv")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == len(ROWS)
    assert (lines[0]["title"], lines[0]["licence"]) == ("'=1+1", "'@x")
    assert float(lines[0]["attacked"]) == 0.7
    assert lines[4]["attacked"] == ""
    ends = ("attacked_spread", "attacked_new_seed_low", "clean_spread", "clean_low", "training_epochs", "open")
    assert [float(lines[1][key]) for key in ends] == pytest.approx([0.01, 0.59, 0.005, 0.96, 30, 12])
    assert (lines[1]["interval_of"], lines[1]["truncated"], lines[1]["attacked_by"]) == ("recipe", "True", "autoattack")
    assert [lines[4][key] for key in ("rank", "rank_low", "rank_high", "interval_of", "clean_spread")] == [""] * 5
    assert lines[3]["title"] == HOSTILE


def test_json_is_the_board_itself():
    (board,) = json.loads(render_boards([BOARD], "json"))
    assert msgspec.convert(board, type=Board) == BOARD


def test_an_empty_board_has_headers():
    empty = msgspec.structs.replace(BOARD, rows=())
    assert "| entry" in render_boards([empty], "markdown").replace("  ", " ")
    assert "\\midrule" in render_boards([empty], "latex")


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "1-2"),
        ({"rank_high": 1}, "1"),
        ({"rank": None, "rank_low": None, "rank_high": None}, "-"),
        ({"rank": None, "rank_low": None, "rank_high": None, "position": 7}, "(7)"),
        ({"kind": "weights"}, "1-2 (weights)"),
    ],
)
def test_ranks_are_intervals(changes, shown):
    assert rank_text(row("x", 0.5, **changes)) == shown
