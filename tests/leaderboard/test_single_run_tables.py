import csv
import io
import json
import statistics
import subprocess
import sys

import pytest

from bench.core import clopper_pearson
from bench.core.example_table import Accuracy, Robustness, Threat
from bench.core.records import AttackResult, Bracket, BracketStage, CertifierResult, Record, Sanity, Size, Training
from leaderboard.estimates import INTERVALS
from leaderboard.render import interval, percent, threat_name
from leaderboard.runs_table import by_recipe, runs_table
from leaderboard.significance import recipe_interval
from leaderboard.single_run_tables import run_table


def make_record(seed=0, clean=0.912, pgd=0.5, worst=0.48, **changes):
    values = {
        "schema": 2, "suite": "digits", "dataset": "digits", "model": "small-cnn",
        "parameters": 71482, "defense": "pgd-at", "seed": seed,
        "threat": Threat("Linf", 0.2), "config": {}, "config_hash": "abc", "n_examples": 360,
        "clean": Accuracy(clean, (0.88, 0.94)),
        "attacks": {"pgd-10": AttackResult(pgd, (0.45, 0.55), forwards=12345, backwards=2345, seconds=1.25)},
        "worst": None if worst is None else Robustness(worst, (0.43, 0.53)), "certifiers": {},
        "training": Training(epochs=30, seconds=61.04, forwards=1_000_000, backwards=999_000),
        "sanity": Sanity("no-warnings", []), "artifacts": {}, "provenance": {},
    }  # fmt: skip
    return Record(**(values | changes))


FGSM = {"fgsm": AttackResult(0.75, (0.7, 0.8), forwards=720, backwards=360, seconds=0.1)}
OTHER = make_record(defense="standard", config_hash="def", attacks=FGSM, worst=None, training=None, suite=None)


def cells(table):
    """The rows of a markdown table, its rule left out."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return [row for row in rows if not set("".join(row)) <= set("-:")]


def test_importing_tables_leaves_torch_out():
    code = "import sys, leaderboard.runs_table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_percent_and_interval():
    assert [percent(share) for share in (0, 0.0004, 0.91249, 1.0)] == ["0.0", "0.0", "91.2", "100.0"]
    assert interval((0.045, 0.5556)) == "[4.5, 55.6]"


@pytest.mark.parametrize(
    ("norm", "eps", "name"),
    [
        ("Linf", 8 / 255, "Linf 8/255"),
        ("Linf", 0.2, "Linf 0.2"),
        ("Linf", 0.031, "Linf 0.031"),
        ("Linf", 0.5 / 255, "Linf 0.00196078"),
        ("L2", 0.5, "L2 0.5"),
        ("L2", 128 / 255, "L2 0.501961"),
        ("L2", 8 / 255, "L2 0.0313725"),
        ("L1", 12.0, "L1 12"),
    ],
)
def test_threat_name(norm, eps, name):
    assert threat_name(Threat(norm, eps)) == name


def test_run_table_holds_the_numbers():
    text = run_table(make_record(seed=7))
    assert text.splitlines()[0] == "pgd-at on digits, small-cnn, Linf 0.2, seed 7, 360 test examples"
    assert cells(text) == [
        ["measured", "accuracy %", "95 % interval, weights", "seconds", "forwards", "backwards"],
        ["clean", "91.2", "[88.0, 94.0]", "", "", ""],
        ["pgd-10", "50.0", "[45.0, 55.0]", "1.2", "12,345", "2,345"],
        ["worst of all attacks", "48.0", "[43.0, 53.0]", "", "", ""],
        ["training (30 epochs)", "", "", "61.0", "1,000,000", "999,000"],
    ]


def test_run_table_ends_with_the_verdict_and_its_reasons():
    assert run_table(make_record()).endswith("\n\nverdict: no warning signs")
    suspect = make_record(sanity=Sanity("suspect", ["black box beats white box: 3 of 60"]))
    assert run_table(suspect).endswith("\n\nverdict: suspect\n  black box beats white box: 3 of 60")


def test_the_worst_accuracy_is_that_of_everything_and_says_what_set_it():
    named = make_record(worst_by=["pgd-10", "bracket"])
    assert cells(run_table(named))[3][:2] == ["worst of all attacks (pgd-10, bracket)", "48.0"]
    earlier = make_record(worst=0.51, bracket=NARROWED)  # over the attacks only
    assert cells(run_table(earlier))[3][:3] == ["worst of all attacks", "50.0", "[45.0, 55.0]"]
    header, row = cells(runs_table([earlier], "markdown"))
    assert row[header.index("worst")] == "50.0 [45.0, 55.0]"
    assert json.loads(runs_table([earlier], "json"))[0]["worst_acc"] == 0.5


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(width):
    record = make_record(
        bracket=NARROWED, certifiers={"ibp": IBP}, worst_by=["pgd-10", "bracket"],
        sanity=Sanity("suspect", ["black box beats white box: 3 of 60 " * 5]),
    )  # fmt: skip
    for text in (run_table(record, width), runs_table([record, make_record(1), OTHER], "markdown", width)):
        assert max(map(len, text.splitlines())) <= width
        assert "suspect" in text


def test_a_union_is_shown_where_there_is_one():
    both = make_record(union=Robustness(0.41, (0.36, 0.46)))
    assert cells(run_table(both))[-2] == ["union of all threats", "41.0", "[36.0, 46.0]", "", "", ""]
    header, first, second, mean = cells(runs_table([both, make_record(1)], "markdown"))
    at = header.index("union")
    assert (first[at], second[at], mean[at]) == ("41.0 [36.0, 46.0]", "", "")
    assert "union" not in cells(runs_table([make_record()], "markdown"))[0]


def test_run_table_without_attacks_and_training():
    rows = cells(run_table(make_record(attacks={}, worst=None, training=None)))
    assert [row[0] for row in rows] == ["measured", "clean"]


def test_comparison_in_markdown():
    header, first, second = cells(runs_table([make_record(), OTHER], "markdown"))
    assert header == [
        "defense", "seed", "data", "model", "threat", "n", "epochs", "clean", "pgd-10", "fgsm", "worst", "interval of",
        "verdict", "training s",
    ]  # fmt: skip
    clean, last = "91.2 [88.0, 94.0]", ["weights", "no warning signs"]
    common = ["0", "digits", "small-cnn", "Linf 0.2", "360"]
    assert first == ["pgd-at", *common, "30", clean, "50.0 [45.0, 55.0]", "", "48.0 [43.0, 53.0]", *last, "61.0"]
    assert second == ["standard", *common, "", clean, "", "75.0 [70.0, 80.0]", "", *last, ""]


def test_comparison_has_mean_and_deviation_over_seeds():
    cleans, pgds, worsts, times = (0.9, 0.8, 0.85), (0.5, 0.6, 0.43), (0.4, 0.5, 0.3), (60.0, 70.0, 62.0)
    runs = [make_record(s, cleans[s], pgds[s], worsts[s], training=Training(3, times[s], 1, 1)) for s in range(3)]
    text = runs_table([runs[0], OTHER, *runs[1:]], "markdown")
    header, *rows = cells(text)
    assert [(row[0], row[1]) for row in rows] == [
        ("pgd-at", "0"), ("pgd-at", "1"), ("pgd-at", "2"), ("pgd-at", "mean of 3"), ("standard", "0"),
    ]  # fmt: skip
    mean = dict(zip(header, rows[3], strict=True))
    for metric, values in (("clean", cleans), ("pgd-10", pgds), ("worst", worsts)):
        low, high = recipe_interval(values, 360)
        spread = f"{100 * statistics.mean(values):.1f} +- {100 * statistics.stdev(values):.1f}"
        assert mean[metric] == f"{spread} [{100 * low:.1f}, {100 * high:.1f}]"
    assert mean["clean"].startswith("85.0 +- 5.0 [")
    assert (mean["training s"], mean["interval of"], mean["verdict"], mean["fgsm"]) == ("64.0 +- 5.3", "recipe", "", "")
    assert [row[header.index("interval of")] for row in rows] == ["weights"] * 3 + ["recipe", "weights"]
    assert text.endswith(INTERVALS)
    assert INTERVALS not in runs_table(runs[:1], "markdown")


def test_seeds_of_fixed_weights_have_the_interval_of_the_weights():
    runs = [make_record(seed, training=None) for seed in range(2)]
    header, *rows = cells(runs_table(runs, "markdown"))
    low, high = clopper_pearson.interval(0.912 * 360, 360)
    assert rows[2][header.index("clean")] == f"91.2 +- 0.0 [{100 * low:.1f}, {100 * high:.1f}]"
    assert rows[2][header.index("interval of")] == "weights"


def test_mean_is_left_out_where_a_seed_has_no_value():
    runs = [make_record(0), make_record(1, worst=0.5, attacks=FGSM, training=None)]
    header, *rows = cells(runs_table(runs, "markdown"))
    mean = dict(zip(header, rows[2], strict=True))
    assert mean["worst"].startswith("49.0 +- 1.4 [")
    assert (mean["pgd-10"], mean["fgsm"], mean["training s"]) == ("", "", "")


def test_runs_of_one_defense_with_other_settings_are_told_apart():
    command = "bench run --defense pgd-at --suite digits --set epochs=2 --set steps=3 --set lr=0.1 --seeds 0"
    changed = make_record(provenance={"command": command}, config_hash="0123456789ab", training=Training(2, 1.0, 1, 1))
    header, first, second = cells(runs_table([make_record(), changed], "markdown"))
    shown = [[row[header.index(name)] for name in ("config", "epochs", "settings")] for row in (first, second)]
    assert shown == [["abc", "30", ""], ["012345", "2", "steps=3 lr=0.1"]]
    assert {"config", "settings"}.isdisjoint(cells(runs_table([make_record()], "markdown"))[0])
    numbers = json.loads(runs_table([changed], "json"))[0]
    assert (numbers["epochs"], numbers["settings"]) == (2, {"steps": "3", "lr": "0.1"})
    (row,) = csv.DictReader(io.StringIO(runs_table([changed], "csv")))
    assert (row["epochs"], row["settings"], row["config_hash"]) == ("2", "steps=3 lr=0.1", "0123456789ab")


def test_every_format_holds_the_spread_of_every_metric():
    narrow = changed(NARROWED, robust_acc=0.45)
    proofs = [{"ibp": CertifierResult(acc, (0.2, 0.4), 0.1, 1.0)} for acc in (0.3, 0.34)]
    runs = [
        make_record(0, certifiers=proofs[0], bracket=NARROWED),
        make_record(1, 0.9, 0.6, 0.3, certifiers=proofs[1], bracket=narrow),
    ]
    mean = json.loads(runs_table(runs, "json"))[2]
    metrics = ("clean", "pgd-10", "worst", "certified ibp", "bracket_certified", "bracket_robust")
    assert set(mean["spreads"]) == set(mean["intervals"]) == set(metrics)
    assert mean["spreads"]["certified ibp"] == pytest.approx(0.04 / 2**0.5)
    assert (mean["seed"], mean["seeds"], mean["interval_of"], mean["verdict"]) == (None, [0, 1], "recipe", None)
    row = list(csv.DictReader(io.StringIO(runs_table(runs, "csv"))))[2]
    for metric in metrics:
        assert float(row[f"{metric}_spread"]) == mean["spreads"][metric]
        assert [float(row[f"{metric}_{end}"]) for end in ("low", "high")] == mean["intervals"][metric]
    assert (
        runs_table(runs, "markdown").splitlines()[4].count("+-")
        == runs_table(runs, "latex").splitlines()[6].count("+-")
        == 7
    )


def test_recipes_are_told_apart_by_their_hash():
    runs = [make_record(0), make_record(0, config_hash="other"), make_record(1)]
    assert by_recipe(runs) == [[runs[0], runs[2]], [runs[1]]]


def test_comparison_in_csv_parses_back():
    rows = list(csv.DictReader(io.StringIO(runs_table([make_record(model="fc1:a=1,2"), OTHER], "csv"))))
    assert [(row["defense"], row["model"], row["suite"]) for row in rows] == [
        ("pgd-at", "fc1:a=1,2", "digits"),
        ("standard", "small-cnn", ""),
    ]
    numbers = {key: float(rows[0][key]) for key in ("eps", "clean", "pgd-10", "pgd-10_low", "worst", "worst_high")}
    assert numbers == {"eps": 0.2, "clean": 0.912, "pgd-10": 0.5, "pgd-10_low": 0.45, "worst": 0.48, "worst_high": 0.53}
    assert float(rows[0]["training_seconds"]) == 61.04
    assert (rows[0]["clean_low"], rows[0]["clean_high"]) == ("0.88", "0.94")
    assert (rows[0]["fgsm"], rows[1]["fgsm_high"], rows[1]["worst"], rows[1]["training_seconds"]) == ("", "0.8", "", "")


def test_comparison_in_json_is_fractions():
    first, second = json.loads(runs_table([make_record(seed=2), OTHER], "json"))
    assert first == {
        "defense": "pgd-at", "suite": "digits", "dataset": "digits", "model": "small-cnn", "norm": "Linf", "eps": 0.2,
        "box": True, "config_hash": "abc", "epochs": 30, "settings": {}, "seed": 2, "seeds": [2], "n_examples": 360,
        "size": None, "interval_of": "weights", "clean_acc": 0.912, "robust_acc": {"pgd-10": 0.5},
        "worst_acc": 0.48, "worst_by": [],
        "intervals": {"clean": [0.88, 0.94], "pgd-10": [0.45, 0.55], "worst": [0.43, 0.53]},
        "spreads": {"clean": None, "pgd-10": None, "worst": None},
        "union_acc": None, "certified_acc": {}, "bracket": None, "verdict": "no-warnings",
        "corruptions": {}, "corrupted_acc": None, "training_seconds": 61.04,
    }  # fmt: skip
    assert (second["worst_acc"], second["training_seconds"], second["robust_acc"]) == (None, None, {"fgsm": 0.75})


def test_every_format_tells_runs_without_a_box():
    runs = [make_record(), make_record(config_hash="def", threat=Threat("Linf", 0.2, box=False))]
    assert [row["box"] for row in json.loads(runs_table(runs, "json"))] == [True, False]
    assert [row["box"] for row in csv.DictReader(io.StringIO(runs_table(runs, "csv")))] == ["True", "False"]
    for form in ("markdown", "latex"):
        assert runs_table(runs, form).count("Linf 0.2, no box") == 1


def test_comparison_in_latex():
    text = runs_table([make_record(model="small_cnn"), OTHER], "latex")
    assert r"\toprule" in text
    assert r"\bottomrule" in text
    assert r"small\_cnn" in text
    assert "50.0 [45.0, 55.0]" in text


def stage(tried, certified=0, broken=0, forwards=0, backwards=0, seconds=0.0):
    return BracketStage(tried, certified, broken, forwards, backwards, seconds)


def changed(bracket, **changes):
    return Bracket(**{f: getattr(bracket, f) for f in bracket.__struct_fields__} | changes)


IBP = CertifierResult(0.3, (0.25, 0.35), mean_radius=0.06, seconds=0.5)
NARROWED = Bracket(
    certified_acc=0.4, certified_ci95=(0.35, 0.45), robust_acc=0.5, robust_ci95=(0.45, 0.55), open=36,
    seconds=61.5, budget=1000, truncated=False,
    stages={
        "clean": stage(360, broken=32), "fgsm": stage(328, broken=100, forwards=656, backwards=328),
        "crown": stage(228), "exact": stage(228, certified=144, broken=48, forwards=1000),
    },
    skipped={"ibp": "IBP has no L2 form"},
)  # fmt: skip


def test_run_table_holds_certificates_and_the_bracket():
    text = run_table(make_record(attacks={}, worst=None, certifiers={"ibp": IBP}, bracket=NARROWED))
    assert cells(text)[3:5] == [
        ["certified by ibp, mean radius 0.06", "30.0", "[25.0, 35.0]", "0.5", "", ""],
        ["bracket [certified, attacked]", "[40.0, 50.0]", "[35.0, 55.0]", "61.5", "1,656", "328"],
    ]
    assert text.split("\n\n")[2].splitlines() == [
        "bracket: 36 open (budget: 1,000 sub-problems for each example); clean 32 broken, fgsm 100 broken, exact 144 "
        "certified and 48 broken",
        "  skipped ibp: IBP has no L2 form",
    ]
    closed = changed(NARROWED, open=0)
    assert "bracket: 0 open; clean" in run_table(make_record(bracket=closed))
    said = "bracket: 36 open (cut by the time limit of 60 s: another machine may decide more or fewer); clean"
    cut, earlier = {"time_limit": 60.0, "truncated": True}, {"budget_seconds": 60.0, "budget": None, "truncated": None}
    for changes in (cut, earlier):
        assert said in run_table(make_record(bracket=changed(NARROWED, **changes)))
    cut = changed(NARROWED, **cut)
    header, row = cells(runs_table([make_record(bracket=cut)], "markdown"))
    assert row[header.index("open")] == "36 cut"


def test_comparison_has_columns_for_certificates_and_brackets_where_there_are_any():
    both = make_record(certifiers={"ibp": IBP}, bracket=NARROWED)
    header, first, second, mean = cells(runs_table([both, make_record(1)], "markdown"))
    ibp, bracket = header.index("certified ibp"), header.index("bracket")
    assert header.index("worst") < ibp < bracket < header.index("verdict")
    assert (first[ibp], first[bracket]) == ("30.0 [25.0, 35.0]", "[40.0, 50.0]")
    assert (second[ibp], second[bracket], mean[ibp], mean[bracket]) == ("", "", "", "")
    assert {"certified ibp", "bracket"}.isdisjoint(cells(runs_table([make_record()], "markdown"))[0])


def test_the_mean_of_brackets_is_of_their_ends():
    wider = changed(NARROWED, robust_acc=0.6)
    runs = [make_record(seed, bracket=each) for seed, each in enumerate((NARROWED, wider))]
    rows = cells(runs_table(runs, "markdown"))
    assert rows[3][rows[0].index("bracket")] == "[40.0 +- 0.0, 55.0 +- 7.1]"


def test_csv_and_json_hold_certificates_and_brackets():
    runs = [make_record(certifiers={"ibp": IBP}, bracket=NARROWED), OTHER]
    first, second = csv.DictReader(io.StringIO(runs_table(runs, "csv")))
    assert [first[key] for key in ("certified ibp", "certified ibp_low", "certified ibp_high")] == [
        "0.3",
        "0.25",
        "0.35",
    ]
    assert [first[key] for key in ("bracket_certified", "bracket_certified_low", "bracket_robust")] == [
        "0.4",
        "0.35",
        "0.5",
    ]
    assert (first["bracket_robust_high"], first["bracket_open"]) == ("0.55", "36")
    assert (second["certified ibp"], second["bracket_certified"], second["bracket_open"]) == ("", "", "")
    assert (first["verdict"], second["verdict"]) == ("no-warnings", "no-warnings")
    plain = json.loads(runs_table(runs, "json"))
    assert plain[0]["certified_acc"] == {"ibp": 0.3}
    assert plain[0]["bracket"] == {"certified_acc": 0.4, "robust_acc": 0.5, "open": 36, "truncated": False}
    assert plain[1]["bracket"] is None


def test_sizes_are_shown_if_a_network_is_compressed():
    dense = make_record(size=Size(1000, 1000, 32000, 4100, 2500))
    sparse = make_record(seed=1, defense="rst", size=Size(1000, 10, 320, 60, 70))
    assert "FLOPs" not in runs_table([dense, make_record(seed=2)], "markdown")
    text = runs_table([dense, sparse], "markdown")
    assert "10 of 1,000" in text
    assert "1,000 of 1,000" in text
    head, *rows = csv.reader(io.StringIO(runs_table([dense, sparse], "csv")))
    assert [row[head.index("flops")] for row in rows] == ["2500", "70"]
    assert json.loads(runs_table([sparse, dense], "json"))[0]["size"]["kept"] == 10
