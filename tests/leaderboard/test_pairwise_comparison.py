"""`bench compare`: the right test for what is compared."""

import json
import re

import msgspec
import numpy as np
import pytest
from scipy import stats

from bench.cli import main
from bench.core.errors import UserError
from bench.core.example_table import Threat, accuracy
from bench.core.records import CertifierResult
from leaderboard.pairwise_comparison import compare, comparison_table, read_side
from leaderboard.significance import examples_needed, mcnemar, paired_difference, seeds_difference
from tests.publish.published import flags, table_of, under_fog, write_run


def run(folder, hits, *, n=100, first=0, **changes):
    return write_run(folder, table_of(flags(n, hits, first=first)), weights=str(folder), **changes)


def test_two_networks_are_compared_example_by_example(tmp_path):
    a, b = run(tmp_path / "a", 60), run(tmp_path / "b", 50, first=20)
    clean, robust = compare(read_side(a), read_side(b))
    assert robust.difference == pytest.approx(0.1)
    assert robust.only_a == tuple(range(20))
    assert robust.only_b == tuple(range(60, 70))
    assert robust.p == pytest.approx(float(mcnemar(20, 10)))
    assert (robust.low, robust.high) == pytest.approx([float(x) for x in paired_difference(20, 10, 100)[1:]])
    assert robust.needed == examples_needed(20, 10, 100)
    assert (clean.difference, clean.p, clean.needed) == (0.0, 1.0, None)


def test_certificates_of_another_classifier_are_not_compared(tmp_path):
    columns = {"certified/smoothing": flags(100, 70), "prediction/smoothing": np.zeros(100, dtype=np.int64)}
    table = table_of(flags(100, 60), **columns, **{"radius/smoothing": np.full(100, 0.5, dtype=np.float32)})
    share = accuracy(columns["certified/smoothing"])
    smoothed = {"smoothing": CertifierResult(share.acc, share.ci95, 0.5, 1.0, kind="probabilistic")}
    a, b = (write_run(tmp_path / name, table, weights=name, certifiers=smoothed) for name in "ab")
    assert [each.metric for each in compare(read_side(a), read_side(b))] == ["clean", "robust"]


def under(folder, hits, **changes):
    table, said = under_fog(flags(100, 60), hits, mild=80)
    return read_side(write_run(folder, table, weights=str(folder), **said | changes))


def test_accuracies_under_corruptions_are_compared(tmp_path):
    a, b = under(tmp_path / "a", 70), under(tmp_path / "b", 40)
    corrupted = compare(a, b)[-1]
    assert (corrupted.metric, corrupted.a, corrupted.b) == ("corrupted", pytest.approx(0.78), pytest.approx(0.72))
    wanted = stats.ttest_rel(a.runs[0].corrupted, b.runs[0].corrupted)
    assert corrupted.p == pytest.approx(wanted.pvalue)
    assert (corrupted.low, corrupted.high) == pytest.approx(tuple(wanted.confidence_interval()))
    assert compare(a, a)[-1].p == 1
    from_file = {"fog": msgspec.structs.replace(b.runs[0].record.corruptions["fog"], file="12" * 32)}
    with pytest.raises(UserError, match="the same --corruptions"):
        compare(a, under(tmp_path / "c", 40, corruptions=from_file))
    for seed in (0, 1):
        under(tmp_path / f"first/{seed}", 70 + seed, seed=seed)
        under(tmp_path / f"second/{seed}", 40 + seed, seed=seed)
    assert compare(read_side(tmp_path / "first"), read_side(tmp_path / "second"))[-1].test == "t over seeds"


def test_recipes_are_compared_over_seeds(tmp_path):
    for seed, (a, b) in enumerate([(60, 50), (62, 51), (64, 49)]):
        run(tmp_path / f"a/{seed}", a, seed=seed)
        run(tmp_path / f"b/{seed}", b, seed=seed)
    robust = compare(read_side(tmp_path / "a"), read_side(tmp_path / "b"))[1]
    wanted = seeds_difference(np.array([0.6, 0.62, 0.64]), np.array([0.5, 0.51, 0.49]), 0.01)
    assert (robust.p, robust.low, robust.high) == pytest.approx((wanted.p, wanted.low, wanted.high))
    assert robust.only_a == ()
    assert robust.needed >= 2
    shown = comparison_table(read_side(tmp_path / "a"), read_side(tmp_path / "b"), [robust])
    assert "a (3 seeds)" in shown
    assert "seeds a side to tell" in shown


def test_the_examples_that_both_have_are_compared(tmp_path):
    a, b = run(tmp_path / "a", 60), run(tmp_path / "b", 40, n=50)
    robust = compare(read_side(a), read_side(b))[1]
    assert (robust.n, robust.a, robust.b) == (50, 1.0, 0.8)
    text = comparison_table(read_side(a), read_side(b), [robust])
    assert re.search(r"\| robust +\| +50 \| +100.0 \|", text)
    assert "A has 100 examples, B 50: the first 50, which all have, are compared." in text
    same = comparison_table(read_side(a), read_side(a), compare(read_side(a), read_side(a)))
    assert "which all have" not in same


@pytest.mark.parametrize("width", [80, 120])
def test_a_comparison_fits_the_terminal(width, tmp_path):
    a, b = run(tmp_path / "a", 60), run(tmp_path / "b", 40, n=50, first=20)
    text = comparison_table(read_side(a), read_side(b), compare(read_side(a), read_side(b)), width)
    assert max(len(line) for line in text.splitlines() if line[:3] not in ("A: ", "B: ")) <= width  # paths stay whole


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"provenance": {"data_hash": "other"}}, "same data"),
        ({"threat": Threat("Linf", 0.1)}, "under one threat model"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, changes, said):
    a, b = run(tmp_path / "a", 60), run(tmp_path / "b", 40, **changes)
    with pytest.raises(UserError, match=said):
        compare(read_side(a), read_side(b))


def test_a_folder_is_one_recipe(tmp_path):
    run(tmp_path / "x/a", 60, config_hash="a")
    run(tmp_path / "x/b", 60, config_hash="b")
    with pytest.raises(UserError, match="holds 2 recipes"):
        read_side(tmp_path / "x")


def test_one_seed_says_nothing_of_a_recipe(tmp_path):
    run(tmp_path / "a/0", 60)
    run(tmp_path / "a/1", 61, seed=1)
    run(tmp_path / "b", 50)
    with pytest.raises(UserError, match="give at least two"):
        compare(read_side(tmp_path / "a"), read_side(tmp_path / "b"))


def test_other_attacks_and_equal_weights_are_named(tmp_path, capsys):
    weak, strong = table_of(flags(100, 60)), table_of(flags(100, 50))
    (spec,) = (key for key in weak if key.startswith("robust/"))
    strong["robust/fgsm"] = strong.pop(spec)
    sides = [write_run(tmp_path / name, table, weights="w") for name, table in (("a", weak), ("b", strong))]
    text = comparison_table(*(both := [read_side(side) for side in sides]), compare(*both))
    assert "A and B have the same weights." in text
    assert f"A was attacked by {spec.removeprefix('robust/')}, B by fgsm: `robust` compares these methods" in text
    main(["compare", *map(str, sides), "--json"])
    assert capsys.readouterr().err.count("note: ") == 2
    text = comparison_table(both[0], both[0], compare(both[0], both[0]))
    assert "attacked by" not in text


def test_the_command(tmp_path, capsys):
    run(tmp_path / "a", 60)
    run(tmp_path / "b", 50, first=20)
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    out = capsys.readouterr().out
    assert "robust, only A: 20 examples: 0, 1," in out
    assert "| robust" in out
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    assert json.loads(capsys.readouterr().out)[1]["only_b"] == list(range(60, 70))
    with pytest.raises(SystemExit) as caught:
        main(["compare", str(tmp_path / "a"), str(tmp_path / "nothing")])
    assert caught.value.code == 2
