"""The published records and the baseline of the gate follow from their tables, and docs/board shows the boards."""

from pathlib import Path

import pytest

from bench.core import record_checks, record_files
from bench.core.config import get_suite
from bench.core.files import read_arrays
from bench.core.record_files import find_records
from leaderboard.board_tables import render_boards
from leaderboard.build_board import build_board
from leaderboard.published_results import published_suites, read_entries, results_folder

ROOT = Path(__file__).parents[2]
RESULTS = results_folder()
PUBLISHED = find_records([RESULTS])


@pytest.mark.parametrize("folder", [*PUBLISHED, *find_records([ROOT / ".ci" / "baseline"])], ids=str)
def test_every_record_follows_from_its_table(folder):
    record_checks.check_record(record_files.read_record(folder), read_arrays(folder / record_files.TABLE))


@pytest.mark.parametrize("suite", published_suites(RESULTS))
def test_every_entry_was_measured_by_the_rules_of_its_suite(suite):
    rules = get_suite(suite)
    for entry in read_entries(RESULTS, suite)[0]:
        for run in entry.runs:
            record = run.record
            assert (record.suite, record.dataset) == (suite, rules.dataset)
            assert (record.threat.norm, record.threat.eps) == (rules.norm, rules.eps)
            assert record.n_examples >= (rules.board_examples or 0)
            assert record.bracket is not None or set(record.attacks) & set(rules.board_attacks)
            assert record.sanity.verdict != "unreliable"


def test_the_boards_in_docs_are_up_to_date():
    """`bench leaderboard > docs/board/boards.md` updates them."""
    boards = [build_board(RESULTS, suite) for suite in published_suites(RESULTS)]
    text = (ROOT / "docs/board/boards.md").read_text(encoding="utf-8")
    assert text == f"{render_boards(boards, 'markdown')}\n"
