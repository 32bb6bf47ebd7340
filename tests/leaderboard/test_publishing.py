"""What is published is whole, never written over, and never edited."""

import msgspec
import numpy as np
import pytest

from bench.cli import main
from bench.core import files, record_files
from bench.core.errors import UserError
from bench.core.records import Artifact
from leaderboard.published_results import (
    Contest,
    add_contest,
    check_name,
    published_suites,
    read_entries,
    read_entry,
)
from leaderboard.publishing import add_runs
from tests.forged_records import change_record
from tests.publish.published import ABOUT, flags, publish, table_of, write_run

URL = "https://example.org/weights"


def contest(broken, sha="ab" * 32):
    return Contest(by="Somebody", broken=broken, witnesses=Artifact(sha256=sha, bytes=9), finished="2026-11-21")


def test_the_suite_with_the_most_entries_comes_first(tmp_path):
    for entry in ("b/x", "a/x", "c/x", "c/y", "empty"):
        (tmp_path / entry).mkdir(parents=True)
    assert published_suites(tmp_path) == ["c", "a", "b"]


def test_what_is_published_is_read_back(tmp_path):
    results = tmp_path / "results"
    tables = [table_of(flags(10, 6), certified=flags(10, 3)), table_of(flags(10, 7), certified=flags(10, 4))]
    publish(results, "mine", tables, url=URL)
    publish(results, "another", tables[:1])
    assert published_suites(results) == ["digits"]
    (another, mine), _ = read_entries(results, "digits")
    assert (another.name, mine.name, mine.about) == ("another", "mine", ABOUT)
    assert [run.record.seed for run in mine.runs] == [0, 1]
    for run, table in zip(mine.runs, tables, strict=True):
        assert np.array_equal(run.robust, table["robust/pgd-50"])
        assert np.array_equal(run.certified, table["certified/ibp"])
    assert mine.recipe
    assert mine.measured


def test_artifacts_have_an_address_or_none_and_the_table_lies_beside(tmp_path):
    publish(tmp_path / "results", "mine", [table_of(flags(4, 2))], url=f"{URL}/")
    publish(tmp_path / "results", "other", [table_of(flags(4, 2))])
    mine, other = (entry.runs[0].record.artifacts for entry in read_entries(tmp_path / "results", "digits")[0])
    assert mine["weights"].url == f"{URL}/0/weights.safetensors"
    assert mine["witnesses"].url == f"{URL}/0/witnesses.npz"
    assert (mine["examples"].path, mine["examples"].url) == ("examples.npz", None)
    assert (other["weights"].path, other["weights"].url) == (None, None)
    assert other["weights"].sha256


def test_seeds_are_sorted_as_numbers(tmp_path):
    tables = [table_of(flags(4, 2))] * 11
    publish(tmp_path / "results", "mine", tables)
    (entry,), _ = read_entries(tmp_path / "results", "digits")
    assert [run.record.seed for run in entry.runs] == list(range(11))


def refused(results, run, name="mine", about=ABOUT):
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        add_runs(results, name, about, [run])
    assert before == {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_is_written_over(tmp_path):
    results = tmp_path / "results"
    publish(results, "mine", [table_of(flags(4, 2))])
    again = write_run(tmp_path / "again", table_of(flags(4, 3)), weights="w", defense="mine", config_hash="mine")
    assert "is published already" in refused(results, again)


def test_an_entry_is_one_recipe_with_one_description_and_its_seeds_are_trainings(tmp_path):
    results = tmp_path / "results"
    publish(results, "mine", [table_of(flags(4, 2))])
    same = {"defense": "mine", "config_hash": "mine", "seed": 7}
    other = write_run(tmp_path / "a", table_of(flags(4, 3)), weights="w", **(same | {"config_hash": "changed"}))
    assert "seed 7 is mine changed on digits, the others are mine mine on digits" in refused(results, other)
    copied = write_run(tmp_path / "b", table_of(flags(4, 3)), weights="mine0", **same)
    assert "seeds 0 and 7 have the same weights" in refused(results, copied)
    fine = write_run(tmp_path / "c", table_of(flags(4, 3)), weights="w", **same)
    assert "differs from the new description" in refused(
        results, fine, about=msgspec.structs.replace(ABOUT, licence="GPL")
    )
    add_runs(results, "mine", ABOUT, [fine])


def test_a_run_of_no_suite_is_refused(tmp_path):
    run = write_run(tmp_path / "run", table_of(flags(4, 2)), suite=None)
    assert "has no suite" in refused(tmp_path, run)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "A", "-a", "a..b", "a b", "a\n", "x" * 65, "\u0430tas", "a\u202eb", "a%2f"],
)
def test_names_are_plain(name):
    with pytest.raises(UserError, match=r"\A[ -~]*\Z"):
        check_name(name, "entry")


@pytest.mark.parametrize("name", ["a", "binary-subnet", "pgd-at-2", "c++", "v1.5_x", "x" * 64])
def test_plain_names_pass(name):
    assert check_name(name, "entry") == name


def test_a_contest_lowers_what_is_robust_and_edits_nothing(tmp_path):
    results = tmp_path / "results"
    home = publish(results, "mine", [table_of(flags(10, 6))])
    published = (home / "0" / record_files.RECORD).read_bytes()
    add_contest(results, "digits", "mine", 0, contest([0, 2, 9]))
    (entry,), _ = read_entries(results, "digits")
    assert np.flatnonzero(entry.runs[0].robust).tolist() == [1, 3, 4, 5]
    assert (home / "0" / record_files.RECORD).read_bytes() == published
    with pytest.raises(UserError, match="have been counted"):
        add_contest(results, "digits", "mine", 0, contest([1]))
    add_contest(results, "digits", "mine", 0, contest([1], sha="cd" * 32))
    (entry,), _ = read_entries(results, "digits")
    assert np.flatnonzero(entry.runs[0].robust).tolist() == [3, 4, 5]


def test_a_table_that_is_not_the_records_is_refused(tmp_path):
    home = publish(tmp_path / "results", "mine", [table_of(flags(10, 6))])
    files.write_arrays(home / "0" / record_files.TABLE, table_of(flags(10, 9)))
    with pytest.raises(UserError, match="is not the table that"):
        read_entry(home, "digits")


def test_examples_out_of_order_are_refused(tmp_path):
    table = table_of(flags(10, 6))
    home = publish(tmp_path / "results", "mine", [table | {"index": np.arange(10)[::-1].copy()}])
    with pytest.raises(UserError, match="first n test examples"):
        read_entry(home, "digits")


def test_broken_files_of_an_entry_are_one_line_and_the_others_are_read(tmp_path):
    results = tmp_path / "results"
    home = publish(results, "mine", [table_of(flags(4, 2))])
    publish(results, "other", [table_of(flags(4, 2))])
    for text in ("title = ", "title = 3", "tittle = 'x'", None):
        if text is None:
            (home / "about.toml").unlink()
        else:
            (home / "about.toml").write_text(text)
        entries, (problem,) = read_entries(results, "digits")
        assert [entry.name for entry in entries] == ["other"]
        assert problem.startswith("entry mine is left out: ")
        assert "about.toml" in problem
        assert "\n" not in problem


def rename_attack(seed, spec):
    table = files.read_arrays(seed / record_files.TABLE)
    files.write_arrays(
        seed / record_files.TABLE, {key.replace("pgd-50", spec): column for key, column in table.items()}
    )
    new = record_files.artifact(seed / record_files.TABLE)
    change_record(seed, lambda record: record["attacks"].update({spec: record["attacks"].pop("pgd-50")}))
    change_record(seed, lambda record: record["artifacts"]["examples"].update(sha256=new.sha256, bytes=new.bytes))


@pytest.mark.parametrize("damage", [
    lambda seed: (seed / "record.json").unlink(),
    lambda seed: (seed / "examples.npz").unlink(),
    lambda seed: (seed / "record.json").write_text("[" * 100_000),
    lambda seed: (seed / "record.json").write_bytes(b'{"a": "\xff"}'),
    lambda seed: seed.rename(seed.with_name("3")),
    lambda seed: change_record(seed, lambda record: record["artifacts"].pop("weights")),
    lambda seed: rename_attack(seed, "pgd-50:eps=many"),
])  # fmt: skip
def test_a_board_leaves_out_an_entry_that_is_not_whole(damage, tmp_path, capsys):
    results = tmp_path / "results"
    home = publish(results, "mine", [table_of(flags(4, 2))])
    publish(results, "other", [table_of(flags(4, 2))])
    damage(home / "0")
    main(["leaderboard", "--results", str(results)])
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("warning: entry mine is left out: ")
    assert "entry mine is left out" in shown.out


def test_the_same_runs_may_be_added_again_and_change_nothing(tmp_path):
    results = tmp_path / "results"
    tables = [table_of(flags(4, 2)), table_of(flags(4, 3))]
    home = publish(results, "mine", tables)
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    runs = sorted((tmp_path / "runs/mine").iterdir())
    assert add_runs(results, "mine", ABOUT, runs) == home
    assert before == {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}


def test_of_several_runs_all_are_added_or_none(tmp_path):
    results = tmp_path / "results"
    same = {"defense": "mine", "config_hash": "mine"}
    fine = write_run(tmp_path / "a", table_of(flags(4, 3)), weights="a", seed=1, **same)
    copied = write_run(tmp_path / "b", table_of(flags(4, 3)), weights="a", seed=2, **same)
    with pytest.raises(UserError, match="have the same weights"):
        add_runs(results, "mine", ABOUT, [fine, copied])
    assert published_suites(results) == []
    assert not [path for path in results.rglob("*") if path.is_file()]
