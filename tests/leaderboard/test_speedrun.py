import json

import msgspec
import pytest
from scipy import stats

from bench.core.errors import UserError
from leaderboard.estimates import Estimate
from leaderboard.speedrun import p_above, render_speedrun, speedrun
from tests.leaderboard.boards import board, row

ABOVE = [0.66, 0.67, 0.65, 0.68, 0.66]


def entry(name, attacked=ABOVE, passes=1000.0, **changes):
    like = row(name=name)
    seeds = [
        msgspec.structs.replace(like.seeds[0], seed=seed, attacked=acc, n_examples=360)
        for seed, acc in enumerate(attacked)
    ]
    cost = msgspec.structs.replace(like.cost, training_passes=passes)
    fields = {
        "seeds": tuple(seeds), "cost": cost, "kind": "recipe", "trained": "reproduced", "verdict": "no-warnings",
        "extra_data": False,
        "attacked": Estimate(acc=sum(attacked) / len(attacked), low=0.0, high=1.0, spread=0.01),
    }  # fmt: skip
    return msgspec.structs.replace(like, **(fields | changes))


def places(*rows, target=0.6):
    found = speedrun(msgspec.structs.replace(board(1, "digits"), rows=rows))
    return [each.name for each, _ in found[target]]


def test_the_p_value_is_that_of_scipy():
    expected = stats.ttest_1samp(ABOVE, 0.6, alternative="greater").pvalue
    assert p_above(ABOVE, 0.6, 10**6) == pytest.approx(expected)
    assert p_above([0.61] * 5, 0.6, 10) > 0.01  # equal seeds may agree by chance


def test_the_fewest_passes_are_first():
    assert places(entry("slow", passes=2000.0), entry("fast", passes=500.0), entry("middle")) == [
        "fast", "middle", "slow",
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [
    {"attacked": ABOVE[:4]}, {"attacked": [0.6, 0.61, 0.59, 0.6, 0.6]}, {"verdict": "suspect"}, {"extra_data": True},
    {"kind": "weights", "trained": None}, {"trained": "by its authors only"},
])  # fmt: skip
def test_what_breaks_a_rule_has_no_place(changes):
    assert places(entry("against", **changes), entry("fair")) == ["fair"]


def test_a_contest_takes_a_record_away():
    """It lowers the accuracy of a seed on the board."""
    assert places(entry("contested", [0.66, 0.67, 0.65, 0.68, 0.40])) == []


def test_the_table_names_unreached_targets():
    one = msgspec.structs.replace(board(1, "digits"), rows=(entry("fast", [0.68, 0.69, 0.68, 0.70, 0.69]),))
    text = render_speedrun([one], "markdown")
    assert "| digits  |" in text
    assert "reaches" not in text.split("A record has")[0]
    low = msgspec.structs.replace(one, rows=(entry("low", [0.62, 0.621, 0.622, 0.62, 0.62]),))
    assert "No entry of digits reaches 65 %." in render_speedrun([low], "markdown")
    assert "1k" in text  # as on the board
    assert {line["training passes"] for line in json.loads(render_speedrun([one], "json"))} == {"1000"}
    assert [line["entry"] for line in json.loads(render_speedrun([one], "json"))] == ["fast", "fast"]


def test_a_suite_without_targets_is_named():
    with pytest.raises(UserError, match="cifar10: no targets for a speed run; digits, mnist have some"):
        render_speedrun([board(1, "cifar10")], "markdown")
