import json
import math

import numpy as np
import pytest

from bench.cli import main
from bench.studies.claims import (
    ClaimsStudy,
    Findings,
    Interval,
    Table,
    effect_claim,
    exponent,
    falling_trend,
    holds_if,
    jackknife_values,
    mean_interval,
    paired_less,
    rank_correlation,
)


def test_an_exponent_and_its_interval():
    x = np.array([1.0, 2.0, 4.0])
    powers = np.array([[-0.5], [-0.6], [-0.7]])
    found = exponent(x, 3 * x**powers)
    assert found.mean == pytest.approx(-0.6)
    assert found == pytest.approx(mean_interval([-0.5, -0.6, -0.7]))
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)  # t of 2 degrees of freedom


def test_trends_and_pairs_are_tested_over_seeds():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(10, 4))
    assert falling_trend(0.1 * noise - np.arange(4))[1] < 0.01
    assert falling_trend(noise + np.arange(4))[1] > 0.5
    assert falling_trend(np.ones((3, 4))) == ((0.0, 0.0, 0.0), 1.0)
    assert falling_trend(np.tile(-np.arange(4.0), (10, 1))) == (pytest.approx((-1, -1, -1)), pytest.approx(0.5**10))
    assert mean_interval([1.0, 2.0]).times(-2).low == -2 * mean_interval([1.0, 2.0]).high
    assert paired_less(noise[:, 0] - 2, noise[:, 0])[1] == pytest.approx(0.5**10)
    assert paired_less(noise[:, 0], noise[:, 0])[1] == 1.0


class Example(ClaimsStudy):
    """One table and two claims."""

    def findings(self):
        claims = [holds_if("one", "1 of 1", holds=True), holds_if("two", "0 of 1", holds=False)]
        return Findings([Table("a table", ("x", "y"), [(1, 0.123456)])], claims, ["a note"])


def test_the_report_ends_with_the_claims():
    report = Example().run()
    assert "| 1   | 0.123 |" in report
    assert report.endswith("- one\n    measured: 1 of 1\n    holds\n- two\n    measured: 0 of 1\n    does not hold")
    result = json.loads(Example(json=True, seed=4).run())
    assert result["tables"] == [{"title": "a table", "rows": [{"x": 1, "y": 0.123456}]}]
    assert [claim["verdict"] for claim in result["claims"]] == ["holds", "does not hold"]
    assert result["seed"] == 4


def test_json_is_an_option_of_the_studies_that_have_it(capsys):
    with pytest.raises(SystemExit):
        main(["study", "reflected-grid", "--json"])
    assert "no option 'json'" in capsys.readouterr().err


def test_an_undefined_effect_is_not_tested():
    assert effect_claim("a", "", rank_correlation(np.arange(6.0), np.zeros(6))).verdict == "not tested at this size"
    assert effect_claim("a", "", Interval(math.nan, math.nan, math.nan)).verdict == "not tested at this size"
    assert rank_correlation(np.arange(3.0), np.arange(3.0))[1:] == (-1, 1)


@pytest.mark.parametrize("k", [3, 4, 10])
def test_the_jackknife_over_seeds_covers_the_mean_over_pairs(k):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        of_seed, of_pair = rng.normal(size=k), 0.3 * rng.normal(size=(k, k))
        interval = mean_interval(jackknife_values(of_seed[:, None] + of_seed + (of_pair + of_pair.T) / 2))
        covered += interval.low <= 0 <= interval.high
    assert covered >= 0.93 * 400


def test_the_mean_of_the_jackknife_values_is_that_over_pairs():
    pairs = np.random.default_rng(0).random((5, 5))
    assert jackknife_values(pairs).mean() == pytest.approx(pairs[~np.eye(5, dtype=bool)].mean())
