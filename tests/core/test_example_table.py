import numpy as np
import pytest
from scipy.stats import beta

from bench.core import example_table as columns
from bench.core.errors import UserError
from bench.core.example_table import Robustness, accuracy

CLEAN, FGSM, PGD = [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]


def hits(values):
    return np.array(values, dtype=bool)


def make_table(**changes):
    """Four examples, the last one wrong; fgsm breaks the third, pgd the second."""
    table = {
        "index": np.arange(4),
        "label": np.array([0, 1, 2, 3]),
        "prediction": np.array([0, 1, 2, 0]),
        "clean": hits(CLEAN),
        "robust/fgsm": hits(FGSM),
        "robust/pgd-10": hits(PGD),
    }
    return table | {key.replace("robust_", "robust/"): value for key, value in changes.items()}


@pytest.mark.parametrize("n", [1, 7, 100, 10_000])
def test_interval_closed_forms(n):
    edge = 0.025 ** (1 / n)
    none, every = accuracy(np.zeros(n, bool)), accuracy(np.ones(n, bool))
    assert (none.acc, none.ci95) == (0.0, (0.0, pytest.approx(1 - edge, rel=1e-9)))
    assert (every.acc, every.ci95) == (1.0, (pytest.approx(edge, rel=1e-9), 1.0))


@pytest.mark.parametrize(("k", "n"), [(1, 2), (1, 360), (77, 360), (359, 360), (5000, 10_000)])
def test_interval_against_scipy(k, n):
    found = accuracy(np.arange(n) < k)
    expected = (beta.ppf(0.025, k, n - k + 1), beta.ppf(0.975, k + 1, n - k))
    assert found.acc == k / n
    assert found.ci95 == pytest.approx(expected, rel=1e-9)


def test_specs_and_worst_case_of_a_table():
    table = make_table()
    assert columns.attack_specs(table) == ["fgsm", "pgd-10"]
    assert columns.worst_case(table).tolist() == [True, False, False, False]
    assert columns.robustness(columns.worst_case(table)) == Robustness(0.25, accuracy(hits([1, 0, 0, 0])).ci95)


BRACKETED = {
    "status": np.array(["broken", "broken", "broken", "broken"]),
    "decided_by": np.array(["malt", "pgd-10", "fgsm", "clean"]),
}


@pytest.mark.parametrize(
    ("changes", "acc", "by"),
    [
        ({}, 0.25, ["fgsm", "pgd-10"]),
        (BRACKETED, 0.0, ["fgsm", "pgd-10", "bracket"]),
        ({"robust_fgsm": hits([1, 0, 0, 0]), **BRACKETED}, 0.0, ["fgsm", "bracket"]),
        ({"robust_fgsm": hits([0, 0, 0, 0]), **BRACKETED}, 0.0, ["fgsm"]),
        ({"certified/exact": hits([0, 0, 0, 0]), "broken/exact": hits([1, 1, 1, 0])}, 0.0, ["exact"]),
        ({"robust/pgd-10:eps=0.1": hits([0, 0, 0, 0])}, 0.25, ["fgsm", "pgd-10"]),
    ],
    ids=["attacks", "bracket", "bracket-beyond-one", "nothing-left", "counterexamples", "other-threat"],
)
def test_the_worst_accuracy_is_over_all_that_attacked_and_says_what_set_it(changes, acc, by):
    table = make_table(**changes)
    assert columns.worst(table).robust_acc == acc == columns.survivors(table).mean()
    assert columns.worst_by(table) == by


def test_the_union_is_no_higher_than_the_worst():
    table = make_table(**{"robust/fgsm:eps=0.1": hits([1, 1, 1, 0])}, **BRACKETED)
    assert columns.union(table).robust_acc == columns.worst(table).robust_acc == 0.0
    assert columns.union(make_table(**BRACKETED)) is None


def test_nothing_that_attacked_has_no_worst_accuracy():
    clean = {key: value for key, value in make_table().items() if not key.startswith("robust/")}
    assert columns.worst(clean | {"robust/fgsm:eps=0.1": hits(FGSM)}) is None
    assert columns.worst(clean | BRACKETED).robust_acc == 0.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"robust_fgsm": hits([1, 1, 0, 1])}, "robust/fgsm.*misclassified"),
        ({"index": np.array([0, 1, 1, 3])}, "no example twice"),
        ({"index": np.arange(4, dtype=np.int32)}, "'index' is int32"),
        ({"index": np.array(4)}, "index"),
        ({"label": np.array([0.0, 1, 2, 3])}, "'label' is float64"),
        ({"clean": np.array(CLEAN)}, "'clean' is int64"),
        ({"robust_fgsm": np.array(FGSM, np.uint8)}, "'robust/fgsm' is uint8"),
        ({"robust_fgsm": hits(FGSM[:3])}, "'robust/fgsm' is bool .3,."),
        ({"robust_fgsm": hits([FGSM])}, "'robust/fgsm' is bool .1, 4."),
        ({"certified/ibp": np.ones(4)}, "'certified/ibp' is float64"),
        ({"radius/ibp": np.ones(4)}, "'radius/ibp' is float64"),
        ({"prediction": np.array([0, 1, 0, 0])}, "'clean' does not follow"),
    ],
)
def test_a_table_that_is_none_is_a_user_error(changes, said):
    with pytest.raises(UserError, match=rf"\A.*{said}.*\Z"):
        columns.check_table(make_table(**changes))


@pytest.mark.parametrize("column", ["index", "label", "prediction", "clean"])
def test_a_table_without_a_column_is_a_user_error(column):
    table = make_table()
    del table[column]
    with pytest.raises(UserError, match=rf"\A.*no column '{column}'.*\Z"):
        columns.check_table(table)


def test_an_empty_table_is_a_user_error():
    with pytest.raises(UserError, match=r"\A.*at least one row.*\Z"):
        columns.check_table({key: value[:0] for key, value in make_table().items()})


CERTIFIED = {
    "certified/ibp": hits([1, 0, 0, 0]),
    "radius/ibp": np.array([0.2, 0.1, 0, 0], np.float32),
    "certified/exact": hits([1, 0, 0, 0]),
    "radius/exact": np.array([0.2, 0, 0, 0], np.float32),
    "broken/exact": hits([0, 1, 0, 0]),
    "certified/smoothing": hits([0, 1, 0, 1]),
    "radius/smoothing": np.array([0, 0.3, 0, 0.2], np.float32),
    "prediction/smoothing": np.array([-1, 1, 0, 3]),
    "status": np.array(["certified", "broken", "broken", "broken"]),
    "decided_by": np.array(["ibp", "fgsm", "pgd-10", "clean"]),
}


def certified_table(**changes):
    """The same four examples, certified too. smoothing is right where the model is wrong, and abstains on the first."""
    return make_table(**CERTIFIED) | {key.replace("__", "/"): value for key, value in changes.items()}


def test_a_table_with_certificates_and_a_bracket():
    table = certified_table()
    columns.check_table(table)
    assert columns.certifier_specs(table) == ["ibp", "exact", "smoothing"]
    assert {maker: column.tolist() for maker, column in columns.certificates(table).items()} == {
        "ibp": [True, False, False, False],
        "exact": [True, False, False, False],
        "bracket": [True, False, False, False],
    }
    assert {maker: column.tolist() for maker, column in columns.broken_by(table).items()} == {
        "fgsm": [False, False, True, False],
        "pgd-10": [False, True, False, False],
        "exact": [False, True, False, False],
        "bracket": [False, True, True, False],
    }
    assert columns.certified(table).tolist() == [True, False, False, False]


@pytest.mark.parametrize(("left_out", "stand"), [
    ((), [1, 0, 0, 0]),
    (("robust/fgsm", "status", "decided_by"), [1, 0, 1, 0]),
    (("robust/pgd-10", "status", "decided_by"), [1, 0, 0, 0]),
    (("robust/pgd-10", "status", "decided_by", "broken/exact"), [1, 1, 0, 0]),
    (("robust/fgsm", "robust/pgd-10"), [1, 0, 0, 0]),
])  # fmt: skip
def test_what_stands_is_what_nothing_broke(left_out, stand):
    table = {key: column for key, column in certified_table().items() if key not in left_out}
    assert columns.survivors(table).tolist() == hits(stand).tolist()


def test_attacks_under_another_threat_model_break_nothing_of_the_records_own():
    table = make_table() | {"robust/pgd-10:eps=0.5": hits([0, 0, 0, 0]), "certified/ibp": hits([1, 0, 0, 0])}
    table["radius/ibp"] = np.array([0.2, 0, 0, 0], np.float32)
    assert columns.survivors(table).tolist() == [True, False, False, False]
    columns.check_table(table)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"certified__ibp": hits([1, 0, 1, 0])}, "example 2 is both certified and broken"),
        ({"status": np.array(["certified"] * 3 + ["broken"])}, "example 1 is both certified and broken"),
        ({"certified__ibp": hits([1, 0, 0, 1])}, "certified/ibp.*misclassified"),
        ({"certified__smoothing": hits([1, 1, 0, 1])}, "certified/smoothing.*misclassified"),
        ({"radius__ibp": np.array([0.2, 0.1, 0, 0.1], np.float32)}, "0 for misclassified"),
        ({"radius__ibp": np.array([np.inf, 0, 0, 0], np.float32)}, "finite"),
        ({"radius__ibp": np.array([np.nan, 0, 0, 0], np.float32)}, "finite"),
        ({"radius__ibp": np.array([0.2, -0.1, 0, 0], np.float32)}, "not negative"),
        ({"broken__exact": hits([0, 1, 0, 1])}, "broken/exact"),
        ({"broken__exact": np.array([0, 1, 0, 0])}, "'broken/exact' is int64"),
        ({"prediction__smoothing": np.zeros(4)}, "'prediction/smoothing' is float64"),
        ({"status": np.array(["certified", "broken", "broken", "Broken"])}, "must hold"),
        ({"status": np.array(["open", "broken", "broken", "broken"])}, "if and only if 'status' is not open"),
        ({"decided_by": np.array(["", "fgsm", "pgd-10", "clean"])}, "if and only if 'status' is not open"),
        ({"decided_by": np.array(["ibp", "clean", "pgd-10", "clean"])}, "clean errors"),
        ({"decided_by": np.array(["ibp", "fgsm", "pgd-10", "ibp"])}, "clean errors"),
        ({"status": hits([1, 0, 0, 0])}, "'status' is bool"),
        ({"decided_by": np.array(["ibp", "fgsm", "pgd-10"])}, "'decided_by' is <U6 .3,."),
    ],
)
def test_columns_that_contradict_one_another_are_a_user_error(changes, said):
    with pytest.raises(UserError, match=rf"\A.*{said}.*\Z"):
        columns.check_table(certified_table(**changes))


@pytest.mark.parametrize("key", ["radius/ibp", "status", "decided_by"])
def test_a_column_that_belongs_to_another_is_needed(key):
    table = certified_table()
    del table[key]
    with pytest.raises(UserError, match=rf"\A.*'{key}'.*\Z"):
        columns.check_table(table)
