import re

import pytest

from bench.core.errors import UserError
from bench.studies.speed import SpeedStudy


@pytest.mark.slow
def test_passes_and_shares_of_each_defense():
    report = SpeedStudy(defenses=("pgd-at", "free", "finetune"), epochs=1, device="cpu", threads=1).run()
    rows = {}
    for line in report.splitlines():
        if re.match(r"\| (standard|pgd-at|free) ", line):
            name, *values = [cell.strip() for cell in line.strip("|").split("|")]
            rows[name] = [float(value.replace(",", "")) for value in values]
    # a step of standard has one forward and one backward pass; the others have eleven and one
    assert [rows[name][3] for name in ("standard", "pgd-at", "free")] == [1.0, 11.0, 1.0]
    # the backward pass of an update has twice the work of an attack's: (10 * 2 + 3) / 3
    assert [rows[name][2] for name in ("standard", "pgd-at", "free")] == [1.0, 7.67, 1.0]
    for milliseconds, ratio, _, _, *shares, images, utilisation in rows.values():
        assert ratio > 0
        assert images == pytest.approx(1000 * 119.75 / milliseconds, rel=0.02)  # 1,437 images in 12 steps
        assert 0 < utilisation < 100
        assert all(share >= 0 for share in shares)
        assert abs(sum(shares) - 100) <= 2
    assert rows["standard"][1] == 1.0
    assert rows["pgd-at"][4] > rows["standard"][4]  # the attack's share
    assert "finetune: the training needs weights" in report


@pytest.mark.parametrize(("options", "said"), [({"epochs": 0}, "at least 1"), ({"defenses": ("pgt",)}, "pgd-at")])
def test_options_that_are_not_valid(options, said):
    with pytest.raises(UserError, match=said):
        SpeedStudy(**options).run()
