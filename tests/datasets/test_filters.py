import numpy as np
import pytest

from bench.core.errors import UserError
from bench.datasets.load import load_arrays
from bench.runs.plan import make_plan
from bench.runs.request import Request

WHOLE = load_arrays("digits", None)


def test_classes_are_chosen_and_numbered_in_their_order():
    found = load_arrays("digits:classes=7+2", None)
    for x, y, whole_x, whole_y in [
        (found.x_train, found.y_train, WHOLE.x_train, WHOLE.y_train),
        (found.x_test, found.y_test, WHOLE.x_test, WHOLE.y_test),
    ]:
        rows = np.isin(whole_y, (2, 7))
        assert np.array_equal(x, whole_x[rows])
        assert np.array_equal(y, whole_y[rows] == 2)
    assert (found.name, found.classes) == ("digits:classes=7+2", 2)


def test_the_first_examples_are_kept():
    found = load_arrays("digits:test=20:train=100", None)
    assert found.name == "digits:train=100:test=20"
    assert np.array_equal(found.x_train, WHOLE.x_train[:100])
    assert np.array_equal(found.y_test, WHOLE.y_test[:20])


def test_images_are_averaged_to_a_smaller_size():
    found = load_arrays("digits:size=4:test=5", None)
    assert found.shape == (1, 4, 4)
    assert abs(found.x_test.mean() - WHOLE.x_test[:5].mean()) < 8
    assert np.array_equal(load_arrays("digits:size=8", None).x_test, WHOLE.x_test)


@pytest.mark.parametrize(("options", "said"), [
    ("classes=0+10", "0 to 9"), ("classes=3", "two or more"), ("classes=1+1", "different"), ("size=0", "1 to 4096"),
    ("train=0", "1 to 1437"), ("test=361", "1 to 360"), ("colour=1", "no option 'colour'"),
])  # fmt: skip
def test_filters_that_are_not_possible(options, said):
    with pytest.raises(UserError, match=said):
        load_arrays(f"digits:{options}", None)


def test_options_of_a_data_set_come_first():
    assert load_arrays("fake:shape=1+4+4:train=30:classes=3", None).classes == 3


@pytest.mark.parametrize(("dataset", "suite"), [("digits", "digits"), ("digits:classes=0+1", None)])
def test_a_part_of_a_data_set_is_not_its_suite(dataset, suite, tmp_path):
    plan = make_plan(Request(defense="standard", dataset=dataset, attacks=[], out=tmp_path))
    assert (plan.config.suite, plan.config.dataset) == (suite, dataset)
    assert plan.arrays.classes == (10 if suite else 2)
