"""The FLOPs of a step are those of the matrix products that it makes."""

import json

import pytest

from bench.studies.certified_training import step_flops
from bench.studies.certified_training.step_flops import BATCH, StepFlopsStudy, flops_of_step, layers_of_work

INPUTS, CLASSES = 64, 10


@pytest.mark.parametrize(("depth", "width"), [(2, 16), (4, 32)])
def test_a_step_of_standard_training_and_of_pgd_training_has_the_products_of_its_passes(depth, width):
    first = 2 * BATCH * INPUTS * width
    forward = first + 2 * BATCH * (width * width * (depth - 2) + width * CLASSES)
    update = 3 * forward - first  # no gradient of the images
    assert flops_of_step("standard", depth, width, 0) == update
    assert flops_of_step("pgd-at", depth, width, 0) == update + 10 * 2 * forward


def test_work_of_a_depth():
    assert layers_of_work((6, 8), 1) == pytest.approx(8 / 6)
    assert layers_of_work((6, 8), 2) == pytest.approx((7 * 6) / (5 * 4))


def test_the_study_compares_each_method_with_the_table(monkeypatch):
    monkeypatch.setattr(step_flops, "SMALL", step_flops.Plan(widths=(8, 16), depths=(3, 4), middle=(3, 8), seeds=2))
    result = json.loads(StepFlopsStudy(json=True).run())
    assert len(result["claims"]) == 2 * len(step_flops.TABLE)
    (by_width, by_depth) = result["tables"]
    assert [row["method"] for row in by_width["rows"]] == list(step_flops.TABLE)
    assert all(row["n = 16"] > row["n = 8"] for row in by_width["rows"])
    assert all(row["L = 4"] > row["L = 3"] for row in by_depth["rows"])
