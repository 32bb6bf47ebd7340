"""Who may add seeds to an entry, which seeds need a reason, and when a recipe counts as trained again."""

import pytest

from bench.core.errors import CheckError, UserError
from bench.core.record_files import read_record
from bench.core.records import Training
from bench.publish.ownership import check_maintainers, check_seeds_alike
from bench.publish.reproduce import reproduce
from leaderboard.build_board import build_board
from leaderboard.published_results import About, read_entry
from tests.publish.published import flags, publish, table_of, write_run

OWNED = About(title="Mine", paper="Nobody (2026)", licence="MIT", maintainers=("ann", "bea-2"))


@pytest.fixture
def home(tmp_path):
    tables = [table_of(flags(100, hits), clean=flags(100, 95)) for hits in (69, 70, 71)]
    return publish(tmp_path / "results", "mine", tables, about=OWNED)


def test_only_maintainers_add_seeds(home):
    check_maintainers(home, None, "ann")
    check_maintainers(home, OWNED, None)
    with pytest.raises(CheckError, match="eve may not add seeds to mine; its maintainers are ann, bea-2"):
        check_maintainers(home, About(title="Mine", paper="x", licence="x", maintainers=("eve",)), "eve")


def test_a_new_entry_belongs_to_its_author(tmp_path):
    check_maintainers(tmp_path / "new", OWNED, "bea-2")
    with pytest.raises(CheckError, match="maintainers are ann, bea-2"):
        check_maintainers(tmp_path / "new", OWNED, "eve")
    with pytest.raises(CheckError, match="--maintainer"):
        check_maintainers(tmp_path / "new", About(title="x", paper="x", licence="x"), "eve")
    with pytest.raises(UserError, match="name of an account"):
        check_maintainers(tmp_path / "new", About(title="x", paper="x", licence="x", maintainers=("a b",)), None)


def test_a_seed_far_from_the_others_needs_a_reason(home):
    published = read_entry(home, "digits").runs
    check_seeds_alike({3: (0.95, 0.72)}, published, 100, None)
    with pytest.raises(CheckError, match=r"seed 3 has 30.0% attacked, the others predict \[.*\]; say why"):
        check_seeds_alike({3: (0.95, 0.3)}, published, 100, None)
    with pytest.raises(CheckError, match="% clean"):
        check_seeds_alike({3: (0.5, 0.7)}, published, 100, None)
    check_seeds_alike({3: (0.95, 0.3)}, published, 100, "the training diverged, as one in ten does")


def test_seeds_that_come_together_are_compared_with_one_another():
    alike = {seed: (0.95, 0.7 + 0.01 * (seed % 2)) for seed in range(4)}
    check_seeds_alike(alike, (), 100, None)
    with pytest.raises(CheckError, match="seed 9"):
        check_seeds_alike(alike | {9: (0.95, 0.2)}, (), 100, None)
    check_seeds_alike({0: (0.95, 0.7), 1: (0.95, 0.2)}, (), 100, None)  # two say nothing of each other


def again(home, hits, **changes):
    settings = {"defense": "mine", "config_hash": "mine"} | changes
    for seed, count in enumerate(hits, 10):
        table = table_of(flags(100, count), clean=flags(100, 95))
        write_run(home.parents[2] / "again" / str(seed), table, seed=seed, weights="no", **settings)
    return home.parents[2] / "again"


def test_a_recipe_that_was_trained_again_has_a_rank(home, monkeypatch):
    monkeypatch.setattr("bench.publish.reproduce.read_run", read_record)
    (home / "reproduced.json").unlink()
    assert build_board(home.parents[1], "digits").rows[0].rank is None
    path = reproduce(home.parents[1], "digits/mine", again(home, (70, 72)), "Ann")
    assert path == home / "reproduced.json"
    assert read_entry(home, "digits").reproduced.seeds == [10, 11]
    assert build_board(home.parents[1], "digits").rows[0].rank == 1


def test_cheaper_or_dearer_trainings_reproduce_nothing(home, monkeypatch):
    """A claim of few passes is only shown by a training that takes as few."""
    monkeypatch.setattr("bench.publish.reproduce.read_run", read_record)
    runs = again(home, (70, 71), training=Training(1, 10.0, 40_000, 30_000))
    with pytest.raises(CheckError, match="the new seeds took 70000 passes, those of digits/mine claim 7000"):
        reproduce(home.parents[1], "digits/mine", runs, "Ann")


@pytest.mark.parametrize(("hits", "changes", "reason"), [
    ((30, 31), {}, "refused: the new seeds have 30.5% attacked"),
    ((70, 71), {"config_hash": "other"}, "has the config other"),
])  # fmt: skip
def test_other_trainings_reproduce_nothing(hits, changes, reason, home, monkeypatch):
    monkeypatch.setattr("bench.publish.reproduce.read_run", read_record)
    with pytest.raises((CheckError, UserError), match=reason):
        reproduce(home.parents[1], "digits/mine", again(home, hits, **changes), "Ann")
    with pytest.raises(UserError, match="is not in"):
        reproduce(home.parents[1], "digits/none", again(home.parent / "x" / "y", hits), "Ann")
