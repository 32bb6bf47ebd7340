"""The growth of eps in certified training."""

import pytest

from bench.core.config import as_json
from bench.testing.contracts import DefenseContract
from bench.training.ramps import smooth
from defenses.ibp import Config


def test_smooth_growth_is_a_power_and_then_a_line_with_its_slope():
    assert (smooth(0), smooth(1)) == (0, pytest.approx(1))
    assert smooth(0.2) / smooth(0.1) == pytest.approx(16)
    slopes = [(smooth(s + 1e-6) - smooth(s)) / 1e-6 for s in (0.25 - 2e-6, 0.25, 0.6, 0.9)]
    assert slopes == pytest.approx([slopes[-1]] * 4, rel=1e-4)


def test_a_ramp_that_ends_after_the_training_is_warned_of():
    (warning,) = DefenseContract().loop("ibp", warm_up="0.6", ramp="0.8").warnings
    assert "at 50% of eps" in warning
    assert not DefenseContract().loop("ibp", warm_up="0.2", ramp="0.8").warnings


def test_a_training_without_steps_for_the_ramp_is_warned_of():
    _, cost = DefenseContract().loop("ibp", epochs="1", batch_size="40", warm_up="0.1", ramp="0.1").run()
    assert any(warning.startswith("ramp") for warning in cost.warnings)


def test_settings_that_are_newer_than_published_records_are_left_out_where_they_are_off():
    assert not {"growth", "subsample"} & set(as_json(Config()))
    assert as_json(Config(growth="smooth", subsample=5)).items() >= {"growth": "smooth", "subsample": 5}.items()
