"""A board counts what was derived again: attack columns, certificates; and says of the rest what it is."""

import numpy as np
import pytest

from bench.core.errors import UserError
from leaderboard.board_tables import render_boards
from leaderboard.build_board import build_board
from leaderboard.published_results import read_entry, read_evaluated_run
from leaderboard.robustbench_exchange import export_model_info
from leaderboard.verification_files import CHECKED, read_reproduction, write_checked
from tests.publish.published import checked_of, flags, publish, table_of


def row(home):
    (found,) = build_board(home.parents[1], "digits").rows
    return found


@pytest.fixture
def home(tmp_path):
    """A seed that was certified on 40 of 100 examples, and attacked by four attacks."""
    table = table_of(flags(100, 60), certified=flags(100, 40))
    columns = {"autoattack": 77, "pgd-50:eps=0.1": 80, "my-secret-attack": 90, "square": 95}
    table |= {f"robust/{spec}": flags(100, hits) for spec, hits in columns.items()}
    return publish(tmp_path / "results", "mine", [table])


def test_certificates_count_as_far_as_they_were_checked(home):
    assert row(home).certified.acc == 0.4
    assert row(home).certificates.as_text() == "40 not checked"
    kinds = {"proven": list(range(20)), "again": [20, 21], "solver": [22, 23, 24]}
    write_checked(home / "0", checked_of(home / "0", {}, **kinds))
    assert row(home).certified.acc == 0.22
    assert row(home).certificates.as_text() == "20 proven, 2 certified again, 3 trusted solver, 15 open again"
    assert row(home).certifiers[0].accuracy.acc == 0.22
    board = build_board(home.parents[1], "digits")
    assert "20 proven, 2 certified again, 3 trusted solver" in render_boards([board], "markdown")
    assert ",20.0,2.0,3.0,15.0,0.0," in render_boards([board], "csv")


def test_a_certificate_that_the_record_does_not_have_is_not_made(home):
    write_checked(home / "0", checked_of(home / "0", {}, proven=list(range(100))))
    assert read_evaluated_run(home / "0").certified.sum() == 40


def test_only_the_suites_attacks_are_shown_and_those_that_ran_again(home):
    assert {each.spec: each.accuracy.acc for each in row(home).attacks} == {
        "pgd-50": 0.6, "pgd-50:eps=0.1": 0.8, "autoattack": 0.77,
    }  # fmt: skip
    fell = np.flatnonzero(flags(100, 10)).tolist()
    write_checked(home / "0", checked_of(home / "0", {"pgd-50": [], "autoattack": fell, "my-secret-attack": []}))
    assert {each.spec: each.accuracy.acc for each in row(home).attacks} == {"pgd-50": 0.6, "autoattack": 0.67}
    assert export_model_info(read_entry(home, "digits"))["autoattack_acc"] == "67.00"
    write_checked(home / "0", checked_of(home / "0", {"pgd-50": []}))
    assert "autoattack_acc" not in export_model_info(read_entry(home, "digits"))


def test_what_was_derived_is_of_this_table(home):
    write_checked(home / "0", checked_of(home / "0", {}, table="0" * 64))
    with pytest.raises(UserError, match="a different table"):
        read_entry(home, "digits")
    (home / "0" / CHECKED).write_text("[]")
    with pytest.raises(UserError, match="not what a verification derived"):
        read_entry(home, "digits")


def test_a_recipe_that_its_authors_alone_have_trained_says_so_and_has_no_rank(tmp_path):
    home = publish(tmp_path / "results", "mine", [table_of(flags(100, 60)), table_of(flags(100, 61))])
    assert (row(home).trained, row(home).rank) == ("reproduced", 1)
    (home / "reproduced.json").unlink()
    assert (row(home).trained, row(home).rank) == ("by its authors only", None)
    assert "by its authors only" in render_boards([build_board(home.parents[1], "digits")], "markdown")
    (home / "reproduced.json").write_text("{")
    with pytest.raises(UserError, match="trained the entry again"):
        read_reproduction(home)
