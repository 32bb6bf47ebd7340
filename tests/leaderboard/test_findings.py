import pytest

from leaderboard import findings as module
from leaderboard.findings import Claim, bracket_table, claims_table, findings, front_table
from leaderboard.published_results import read_entries
from leaderboard.ranks import rank
from tests.publish.published import flags, publish, table_of

CLAIMS = [
    Claim("strong", "weak", "attacked", "a paper"), Claim("weak", "strong", "attacked", "another"),
    Claim("strong", "even", "attacked", "a third"), Claim("strong", "alone", "attacked", "a fourth"),
]  # fmt: skip


@pytest.fixture
def results(tmp_path):
    results = tmp_path / "results"
    for name, hits in (("strong", (70, 71, 72)), ("weak", (30, 31, 32)), ("even", (70, 73, 71)), ("alone", (50,))):
        publish(results, name, [table_of(flags(100, each)) for each in hits])
    return results


def entries(results):
    return read_entries(results, "digits")[0]


def line(text, *cells):
    """The cells of the one line of a table that starts with these cells."""
    lines = [[cell.strip() for cell in each.strip("|").split("|")] for each in text.splitlines()]
    (found,) = [each for each in lines if each[: len(cells)] == list(cells)]
    return found[len(cells) :]


def test_a_claim_is_tested_over_seeds(results):
    text = claims_table({entry.name: entry for entry in entries(results)}, CLAIMS)
    holds = line(text, "strong", "weak")
    assert holds[2].startswith("+40.0 [+")
    assert holds[4:] == ["holds", ""]
    assert line(text, "weak", "strong")[4] == "the opposite holds"
    even = line(text, "strong", "even")
    assert even[4] == "not significant"
    assert int(even[5].replace(",", "").removeprefix("more than ")) > 3
    assert "alone" not in text  # it has one seed


def test_without_seeds_no_claim_is_tested(results):
    assert claims_table({}, CLAIMS).startswith("No claim can be tested")


def test_the_front_has_no_recipe_that_a_cheaper_one_exceeds(results):
    some = [entry for entry in entries(results) if entry.name != "alone"]
    text = front_table(some, rank(some))  # all train with the same passes
    assert line(text, "strong")[1] == "71.0"
    assert line(text, "even")
    assert "weak" not in text


def test_trainings_that_compute_bounds_are_not_on_the_front(tmp_path):
    results = tmp_path / "results"
    for name, defense, hits in (("kw", "kw", (70, 71, 72)), ("at", "pgd-at", (60, 61, 62))):
        publish(results, name, [table_of(flags(100, each)) for each in hits], defense=defense)
    text = findings(results)
    assert "not counted as passes: kw." in text
    assert "kw" not in front_table(entries(results), rank(entries(results)))


def test_the_gap_of_seed_0_is_counted(tmp_path):
    exact, wide = table_of(flags(100, 60), certified=flags(100, 60)), table_of(flags(100, 60), certified=flags(100, 20))
    for name, table in (("exact", exact), ("wide", wide)):
        publish(tmp_path / "results", name, [table])
    text = bracket_table(entries(tmp_path / "results"))
    assert "known exactly for 1 of 2 entries, and to 2 points for 1." in text
    assert line(text, "wide") == ["20.0", "60.0", "40"]


def test_the_page_has_a_part_for_each_suite_and_a_check_that_can_fail(results, tmp_path, monkeypatch, capsys):
    text = findings(results)
    assert "## digits" in text
    assert "of the 3 pairs of ranked entries" in text
    monkeypatch.setattr(module, "files", lambda _: tmp_path / "leaderboard")
    monkeypatch.setattr(module, "results_folder", lambda: results)
    (tmp_path / "docs").mkdir()
    assert module.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().out
    assert module.main([]) == 0
    assert module.main(["--check"]) == 0
