import math
import shutil
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from bench.core import record_files
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Threat
from bench.core.records import Sanity
from leaderboard.gate_baseline import CHANGES, Recipe, read_runs, update_baseline
from leaderboard.gate_report import gate_annotations, gate_junit, gate_table
from leaderboard.regression_gate import GateFinding, GateReport, check_against_baseline, corrected
from leaderboard.render import verdict_text
from leaderboard.significance import mcnemar, prediction, prediction_p
from tests.forged_records import change_record
from tests.publish.published import bracket_of, flags, table_of, under_fog, write_run

N = 400
DRAWS = 10_000
SPREAD = (0, 4, -3, 6, -5, 2, -4, 1)  # examples by which the seeds of a baseline differ


def seeds(folder, hits, *, first=0, defense="mine", weights="", **changes):
    """A run for each number of hits: seeds from `first` on, each with weights of its own."""
    for seed, robust in enumerate(hits, first):
        table = robust if isinstance(robust, dict) else table_of(flags(N, robust))
        write_run(
            folder / defense / str(seed),
            table,
            seed=seed,
            defense=defense,
            weights=f"{defense}{weights}{seed}",
            **changes,
        )
    return folder


@pytest.fixture
def baseline(tmp_path):
    return seeds(tmp_path / "baseline", [240 + more for more in SPREAD])


def found(report):
    """Findings by what they are of, where the report is of one recipe."""
    (group,) = report.findings.values()
    return {finding.what: finding for finding in group}


def outcomes(report):
    return {what: finding.outcome for what, finding in found(report).items()}


# --- the same weights


def test_the_same_runs_pass(baseline, tmp_path):
    shutil.copytree(baseline, tmp_path / "runs")
    report = check_against_baseline(baseline, [tmp_path / "runs"])
    assert outcomes(report) == {"verdict": "ok", "clean": "ok", "pgd-50": "ok"}
    assert not report.failed
    assert found(report)["pgd-50"].message == "same weights, and no example changed in 8 seeds"


@pytest.mark.parametrize(
    ("lost", "gained", "outcome"),
    [(12, 0, "failed"), (0, 12, "failed"), (5, 0, "warning"), (0, 5, "warning"), (9, 9, "warning")],
)
def test_same_weights_are_compared_example_by_example(tmp_path, lost, gained, outcome):
    before, after = flags(N, 240), flags(N, 240)
    after[:lost], after[N - gained :] = False, True
    seeds(tmp_path / "old", [table_of(before)])
    seeds(tmp_path / "new", [table_of(after)])
    report = check_against_baseline(tmp_path / "old", [tmp_path / "new"])
    finding = found(report)["pgd-50, seed 0"]
    assert (finding.outcome, report.failed) == (outcome, outcome == "failed")
    assert finding.p == float(mcnemar(lost, gained))
    assert (finding.old, finding.new) == (0.6, (240 - lost + gained) / N)
    assert finding.message == f"same weights: {lost} examples lost, {gained} gained"


def test_every_seed_is_a_test_under_holm(tmp_path):
    before = [flags(N, 240) for _ in range(3)]
    after = [flags(N, 240 - lost) for lost in (8, 3, 0)]
    seeds(tmp_path / "old", [table_of(each) for each in before])
    seeds(tmp_path / "new", [table_of(each) for each in after])
    group = found(check_against_baseline(tmp_path / "old", [tmp_path / "new"]))
    assert [group[f"pgd-50, seed {seed}"].p for seed in (0, 1)] == [2 * float(mcnemar(8, 0)), float(mcnemar(3, 0))]
    assert "pgd-50, seed 2" not in group


def test_a_lost_certificate_fails_with_the_same_weights_only(tmp_path):
    robust, before, after = flags(N, 240), flags(N, 100), flags(N, 100)
    after[7], after[150] = False, True
    seeds(tmp_path / "old", [table_of(robust, certified=before)] * 5)
    seeds(tmp_path / "new", [table_of(robust, certified=before), table_of(robust, certified=after)])
    report = check_against_baseline(tmp_path / "old", [tmp_path / "new"])
    finding = found(report)["certificates of ibp"]
    assert (finding.outcome, report.failed) == ("failed", True)
    assert finding.message == "seed 1, same weights: 1 lost, the first is that of example 7"
    seeds(tmp_path / "others", [table_of(robust, certified=after)] * 3, weights="other")
    report = check_against_baseline(tmp_path / "old", [tmp_path / "others"])
    assert "certificates of ibp" not in found(report)
    assert not report.failed


def test_a_certificate_that_only_the_bracket_gave_can_be_lost_too(tmp_path):
    def narrowed(certified):
        status = np.where(flags(N, certified), "certified", np.where(flags(N, 240), "open", "broken"))
        by = np.where(status == "certified", "exact", np.where(status == "broken", "pgd-50", ""))
        return table_of(flags(N, 240), status=status, decided_by=by)

    for name, certified in (("old", 100), ("new", 99)):
        table = narrowed(certified)
        seeds(tmp_path / name, [table], bracket=bracket_of(table))
    group = found(check_against_baseline(tmp_path / "old", [tmp_path / "new"]))
    assert group["certificates of bracket"].outcome == "failed"
    narrower = group["bracket, certified, seed 0"]
    assert (narrower.outcome, narrower.old, narrower.new) == ("warning", 100 / N, 99 / N)
    assert group["bracket, attacked"].outcome == "ok"


def test_corruptions_are_compared(tmp_path):
    for name, hits in (("old", 240), ("new", 200)):
        table, said = under_fog(flags(N, 240), hits, mild=240)
        seeds(tmp_path / name, [table], **said)
    report = check_against_baseline(tmp_path / "old", [tmp_path / "new"])
    assert (outcomes(report)["fog, severity 5, seed 0"], outcomes(report)["fog, severity 4"]) == ("failed", "ok")
    seeds(tmp_path / "none", [table_of(flags(N, 240))])
    group = found(check_against_baseline(tmp_path / "old", [tmp_path / "none"]))
    assert (group["fog, severity 1"].outcome, "settings" in group) == ("failed", False)


def test_the_union_of_threat_models_is_compared(tmp_path):
    for name, first in (("old", 0), ("new", 100)):  # other examples of the same number
        larger = {"robust/pgd-50:eps=0.3": flags(N, 140, first), "passes/pgd-50:eps=0.3": np.full(N, 9)}
        seeds(tmp_path / name, [table_of(flags(N, 120), **larger)])
    report = check_against_baseline(tmp_path / "old", [tmp_path / "new"])
    assert outcomes(report)["union of all threats, seed 0"] == "failed"


# --- other weights


def test_honest_seeds_are_ok(baseline, tmp_path):
    seeds(tmp_path / "runs", [243, 238, 241], first=100)
    report = check_against_baseline(baseline, [tmp_path / "runs"])
    assert outcomes(report) == {"verdict": "ok", "clean": "ok", "pgd-50": "ok"}
    finding = found(report)["pgd-50"]
    old, new = [(240 + more) / N for more in SPREAD], [243 / N, 238 / N, 241 / N]
    assert finding.p == pytest.approx(min(1, 2 * float(prediction_p(old, new, 1 / N))))
    assert (finding.old, finding.new, finding.spread) == pytest.approx(
        (np.mean(old), np.mean(new), np.std(old, ddof=1))
    )
    low, high = prediction(old, 3, 0.99, 1 / N)
    assert f"8 seeds predict [{100 * low:.1f}, {100 * high:.1f}] for 3" in finding.message
    assert finding.message.endswith(f"changes of less than {50 * (high - low):.1f} points are not detected")


def test_a_retraining_with_p_of_at_most_a_tenth_is_a_warning(baseline, tmp_path):
    seeds(tmp_path / "runs", [247, 246, 248], first=100)
    finding = found(check_against_baseline(baseline, [tmp_path / "runs"]))["pgd-50"]
    assert 0.01 < finding.p / 2 < 0.1
    assert finding.outcome == "warning"


@pytest.mark.parametrize("change", [-40, 40])
def test_a_change_in_either_direction_fails(baseline, tmp_path, change):
    seeds(tmp_path / "runs", [240 + change + more for more in (3, -2, 1)], first=100)
    report = check_against_baseline(baseline, [tmp_path / "runs"])
    assert outcomes(report) == {"verdict": "ok", "clean": "ok", "pgd-50": "failed"}
    assert report.failed


def test_alpha_decides(baseline, tmp_path):
    seeds(tmp_path / "runs", [252, 250, 254], first=100)
    p = found(check_against_baseline(baseline, [tmp_path / "runs"]))["pgd-50"].p
    assert 0.001 < p < 0.2
    assert [check_against_baseline(baseline, [tmp_path / "runs"], alpha).failed for alpha in (p, p * 0.99)] == [
        True,
        False,
    ]
    for alpha in (0, 1, math.nan):
        with pytest.raises(UserError, match="--alpha"):
            check_against_baseline(baseline, [tmp_path / "runs"], alpha)


@pytest.mark.parametrize(("old", "new"), [(4, 3), (5, 2)])
def test_too_few_seeds_cannot_tell(tmp_path, old, new):
    seeds(tmp_path / "old", [240] * old)
    seeds(tmp_path / "new", [240] * new, weights="other")
    report = check_against_baseline(tmp_path / "old", [tmp_path / "new"])
    assert report.failed
    assert found(report)["pgd-50"].message == (
        f"other weights: at least 5 seeds of the baseline and 3 new ones are needed; there are {old} and {new}"
    )


def test_one_seed_with_other_weights_makes_all_of_them_trained_again(baseline, tmp_path):
    seeds(tmp_path / "runs", [240, 244])
    seeds(tmp_path / "runs", [238], first=2, weights="other")
    assert "trained again" in found(check_against_baseline(baseline, [tmp_path / "runs"]))["pgd-50"].message


def test_seeds_that_are_one_training_fail(baseline, tmp_path):
    seeds(tmp_path / "runs", [240] * 3, weights="other")
    table = table_of(flags(N, 240))
    write_run(tmp_path / "runs" / "again", table, seed=9, defense="mine", weights="mineother2")
    report = check_against_baseline(baseline, [tmp_path / "runs"])
    assert outcomes(report)["seeds"] == "failed"


# --- what is there


def test_a_recipe_without_a_new_run_fails_and_one_without_a_baseline_warns(baseline, tmp_path):
    seeds(tmp_path / "runs", [240] * 3, defense="yours")
    report = check_against_baseline(baseline, [tmp_path / "runs"])
    assert [(recipe.defense, [each.outcome for each in group]) for recipe, group in report.findings.items()] == [
        ("mine", ["failed"]),
        ("yours", ["warning"]),
    ]


def test_only_some_recipes_are_compared(baseline, tmp_path):
    seeds(tmp_path / "runs", [240] * 3, defense="yours")
    for name in ("yours", "yours on digits, small-cnn, Linf 0.2"):
        report = check_against_baseline(baseline, [tmp_path / "runs"], only=[name])
        assert [recipe.defense for recipe in report.findings] == ["yours"]
    with pytest.raises(UserError, match="--only 'ours' is neither in the baseline nor in the runs: mine, yours"):
        check_against_baseline(baseline, [tmp_path / "runs"], only=["ours"])


def test_a_baseline_that_does_not_exist_yet_is_made_by_update(baseline, tmp_path):
    with pytest.raises(UserError, match=r"no baseline in .*nowhere; create it from the new runs with --update REASON"):
        check_against_baseline(tmp_path / "nowhere", [baseline])


@pytest.mark.parametrize(
    "what", [{"model": "fc1"}, {"threat": Threat("Linf", 0.1)}, {"suite": None, "dataset": "mnist"}]
)
def test_recipes_are_told_apart(tmp_path, what):
    seeds(tmp_path / "old", [240] * 5)
    seeds(tmp_path / "new", [240] * 5, **what)
    assert len(check_against_baseline(tmp_path / "old", [tmp_path / "new"]).findings) == 2


def test_an_attack_or_a_certifier_that_is_gone_fails_and_a_new_one_warns(tmp_path):
    robust = flags(N, 240)
    both = table_of(robust, certified=flags(N, 9)) | {"robust/fgsm": robust, "passes/fgsm": np.full(N, 2)}
    seeds(tmp_path / "more", [both] * 5)
    seeds(tmp_path / "less", [table_of(robust)] * 5)
    gone = outcomes(check_against_baseline(tmp_path / "more", [tmp_path / "less"]))
    extra = {"certified by ibp", "fgsm", "worst of all attacks"}
    assert {what for what, outcome in gone.items() if outcome == "failed"} == extra
    come = check_against_baseline(tmp_path / "less", [tmp_path / "more"])
    assert {what for what, outcome in outcomes(come).items() if outcome == "warning"} == extra
    assert not come.failed


def test_other_examples_or_other_data_fail(baseline, tmp_path):
    more = table_of(flags(N + 1, 240))
    seeds(tmp_path / "more", [more] * 3)
    seeds(tmp_path / "later", [table_of(flags(N, 240)) | {"index": np.arange(1, N + 1)}] * 3)
    ones = np.ones(N, dtype=np.int64)
    seeds(tmp_path / "labels", [table_of(flags(N, 240)) | {"label": ones, "prediction": ones}] * 3)
    seeds(tmp_path / "data", [240] * 3, provenance={"data_hash": "other"})
    for name in ("more", "later", "labels", "data"):
        report = check_against_baseline(baseline, [tmp_path / name])
        assert outcomes(report)["data"] == "failed"
        assert "pgd-50" not in found(report)


@pytest.mark.parametrize(
    ("before", "after", "same", "outcome"),
    [
        ("clean", "suspect", True, "failed"),  # `clean` is an older name of `no-warnings`
        ("no-warnings", "suspect", False, "warning"),
        ("no-warnings", "unreliable", False, "failed"),
        ("suspect", "suspect", True, "ok"),
        ("suspect", "no-warnings", False, "ok"),
        ("suspect", "unreliable", False, "failed"),
        ("no-warnings", "not-attacked", True, "failed"),
        ("no-warnings", "unchecked", False, "warning"),
        ("no-warnings", "made up", True, "failed"),
    ],
)
def test_a_verdict_that_got_worse(tmp_path, before, after, same, outcome):
    seeds(tmp_path / "old", [240] * 4)
    seeds(tmp_path / "old", [240], first=4, sanity=Sanity(before, []))
    seeds(tmp_path / "new", [240] * 2, first=2, weights="" if same else "other")
    seeds(tmp_path / "new", [240], first=4, weights="" if same else "other", sanity=Sanity(after, ["odd: gradients"]))
    finding = found(check_against_baseline(tmp_path / "old", [tmp_path / "new"]))["verdict"]
    assert finding.outcome == outcome
    assert outcome == "ok" or finding.message == f"seed 4 is {verdict_text(after)}; odd: gradients"


def test_with_the_same_weights_the_verdict_is_compared_with_their_own(tmp_path):
    seeds(tmp_path / "old", [240], sanity=Sanity("suspect", []))
    seeds(tmp_path / "old", [240], first=1)
    seeds(tmp_path / "new", [240], first=1, sanity=Sanity("suspect", []))
    assert outcomes(check_against_baseline(tmp_path / "old", [tmp_path / "new"]))["verdict"] == "failed"


def test_settings_that_differ_are_named_and_compared_all_the_same(tmp_path):
    config = {"attacks": ["pgd-50"], "eval_batch": 360, "training": {"epochs": 30, "lr": 0.1}}
    seeds(tmp_path / "old", [240] * 5, config=config)
    changed = config | {"attacks": [], "training": {"epochs": 15, "lr": 0.1, "ema": 0.5}}
    seeds(tmp_path / "new", [240] * 3, config=changed, weights="other")
    group = found(check_against_baseline(tmp_path / "old", [tmp_path / "new"]))
    assert group["settings"].outcome == "warning"
    assert group["settings"].message == "the recipe was run with training.epochs 30 -> 15, training.ema None -> 0.5"
    assert group["pgd-50"].outcome == "ok"


def test_a_record_that_does_not_fit_its_table_is_refused(baseline):
    change_record(baseline / "mine/3", lambda record: record.update(n_examples=401))
    with pytest.raises(CheckError, match=r"mine/3 was changed after it was finished: .* counts 401 examples"):
        check_against_baseline(baseline, [baseline])


def test_a_table_of_the_same_numbers_is_refused_too(baseline, tmp_path):
    table = table_of(flags(N, 240, first=7))
    seeds(tmp_path / "other", [table])
    shutil.copy(tmp_path / "other/mine/0/examples.npz", baseline / "mine/0/examples.npz")
    with pytest.raises(CheckError, match=r"its examples.npz is not the one that the record names"):
        check_against_baseline(baseline, [baseline])


def test_a_record_without_weights_is_refused(tmp_path):
    write_run(tmp_path / "run", table_of(flags(N, 240)), artifacts={})
    with pytest.raises(CheckError, match="does not name its examples"):
        check_against_baseline(tmp_path, [tmp_path])


def test_a_seed_twice_is_a_user_error(baseline, tmp_path):
    seeds(tmp_path / "a", [240])
    seeds(tmp_path / "b", [240])
    with pytest.raises(UserError, match=r"seed 0 of mine on digits, small-cnn, Linf 0.2; give one"):
        check_against_baseline(baseline, [tmp_path / "a", tmp_path / "b"])


def test_a_config_hash_chooses_the_runs_of_a_recipe_with_several_settings(baseline, tmp_path):
    new = tmp_path / "new"
    seeds(new / "long", [242] * 3, weights="l", config_hash="1aa")
    seeds(new / "short", [180] * 2, first=3, weights="s", config_hash="2bb")
    with pytest.raises(UserError, match=r"1aa \(.*long/mine/.\), 2bb \(.*--config HASH"):
        check_against_baseline(baseline, [new])
    assert not check_against_baseline(baseline, [new], configs=["1a"]).failed
    with pytest.raises(UserError, match="no run has the config hash zz; the runs have 1aa, 2bb"):
        check_against_baseline(baseline, [new], configs=["zz"])


# --- how it is shown

RECIPE = Recipe("digits", "pgd-at", "small-cnn:a=1", "Linf 0.2")
REPORT = GateReport(
    0.01,
    {
        RECIPE: [
            GateFinding("verdict", "ok", "no warning signs"),
            GateFinding("clean", "warning", "chance\x00", 0.975, 0.98125, 0.0123, 0.4242),
            GateFinding("settings", "warning", "lr 0.1 -> 0.05"),
            GateFinding("pgd-50", "failed", "<b>50 % gone,\r\nsay & think</b>", 0.7, 0.2, 0.01, 1.234e-9),
        ],
        RECIPE._replace(defense="atas"): [GateFinding("runs", "failed", "no new run")],
    },
)


def test_as_table():
    assert gate_table(replace_message(REPORT)).splitlines() == [
        "                     baseline     new    p",
        "pgd-at on digits, small-cnn:a=1, Linf 0.2",
        "  ok       verdict                                no warning signs",
        "  warning  clean     97.5 +- 1.2  98.1   0.42     chance",
        "  warning  settings                               lr 0.1 -> 0.05",
        "  failed   pgd-50    70.0 +- 1.0  20.0   1.2e-09  gone",
        "atas on digits, small-cnn:a=1, Linf 0.2",
        "  failed   runs                                   no new run",
        "",
        "gate: 2 failed, 2 warning, 1 ok; 2 tests, with a family-wise error rate of at most 0.01 (Holm)",
    ]


def test_as_table_of_a_gate_without_a_test():
    assert gate_table(GateReport(0.01, {RECIPE: [GateFinding("clean", "ok", "as before", 0.5, 0.5)]})).endswith(
        "\n\ngate: 1 ok"
    )


def replace_message(report):
    """Without what no line of a table can hold."""
    plain = {"pgd-50": "gone", "clean": "chance"}
    return GateReport(
        report.alpha,
        {
            key: [replace(each, message=plain.get(each.what, each.message)) for each in group]
            for key, group in report.findings.items()
        },
    )


def test_as_junit_parses_and_keeps_what_was_said():
    root = ET.fromstring(gate_junit(REPORT))
    (suite,) = root
    assert (root.tag, suite.attrib["tests"], suite.attrib["failures"]) == ("testsuites", "5", "2")
    cases = {(case.attrib["classname"].split()[0], case.attrib["name"]): case for case in suite}
    assert [len(case) for case in cases.values()] == [0, 1, 1, 1, 1]
    failure = cases["pgd-at", "pgd-50"].find("failure")
    assert failure.attrib["message"].startswith("70.0 +- 1.0 -> 20.0 (p 1.2e-09): <b>50 % gone,")
    assert cases["pgd-at", "clean"].find("system-out").text == "97.5 +- 1.2 -> 98.1 (p 0.42): chance?"
    assert cases["atas", "runs"].find("failure").attrib["message"] == "no new run"


def test_annotations_are_escaped_as_github_wants_it():
    title = "title=pgd-at on digits%2C small-cnn%3Aa=1%2C Linf 0.2"
    assert gate_annotations(REPORT) == [
        f"::error {title}::pgd-50: 70.0 +- 1.0 -> 20.0 (p 1.2e-09): <b>50 %25 gone,%0D%0Asay & think</b>",
        f"::warning {title}::clean: 97.5 +- 1.2 -> 98.1 (p 0.42): chance\x00%0Asettings: lr 0.1 -> 0.05",
        f"::error {title.replace('pgd-at', 'atas')}::runs: no new run",
    ]


# --- new numbers that are meant


def test_update_begins_a_baseline_and_replaces_the_recipes_of_the_runs(tmp_path):
    home = tmp_path / "baseline"
    runs = seeds(tmp_path / "first", [240 + more for more in SPREAD])
    seeds(runs, [200] * 5, defense="yours")
    (runs / "mine/0/weights.safetensors").write_bytes(b"large")
    update_baseline(home, [runs], "the first numbers")
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and "/0/" in str(path)) == [
        f"digits-{name}-small-cnn-Linf_0.2/0/{file}"
        for name in ("mine", "yours")
        for file in (record_files.TABLE, record_files.RECORD)
    ]
    assert not check_against_baseline(home, [runs]).failed
    again = seeds(tmp_path / "again", [280] * 5, first=10)
    seeds(tmp_path / "all", [200] * 5, defense="yours")
    assert check_against_baseline(home, [again, tmp_path / "all"]).failed
    said = update_baseline(home, [again], " a stronger\n training ")
    assert said.splitlines()[0].endswith(": a stronger training")
    assert (
        said.splitlines()[2]
        == "- mine on digits, small-cnn, Linf 0.2, 5 seeds: clean 100.0 -> 100.0, pgd-50 60.0 -> 70.0"
    )
    text = (home / CHANGES).read_text()
    assert text.startswith("# Changes of the baseline\n\n## 2")
    assert text.index("the first numbers") < text.index("a stronger training")
    assert "- yours on digits, small-cnn, Linf 0.2, 5 seeds: clean 100.0, pgd-50 50.0\n" in text
    assert not check_against_baseline(home, [again, tmp_path / "all"]).failed
    assert [[run.record.seed for run in group] for group in read_runs([home]).values()] == [
        [10, 11, 12, 13, 14],
        [0, 1, 2, 3, 4],
    ]


def test_update_takes_one_run_of_fixed_weights(tmp_path):
    update_baseline(tmp_path / "baseline", [seeds(tmp_path / "runs", [240], training=None)], "a checkpoint")
    assert len(read_runs([tmp_path / "baseline"])) == 1


def test_update_refuses_before_it_writes(baseline, tmp_path):
    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    few, enough = seeds(tmp_path / "few", [250] * 4), seeds(tmp_path / "enough", [250] * 5)
    before = files()
    for runs, reason, said in [
        (enough, " \n", "needs a reason"),
        (few, "why not", "has 4 seeds; a baseline needs at least 5"),
        (baseline, "itself", "is in the baseline already"),
        (tmp_path / "nothing", "why not", "holds no record.json"),
    ]:
        with pytest.raises(UserError, match=said):
            update_baseline(baseline, [runs], reason)
    assert files() == before
    (baseline / "mine/4/weights.safetensors").write_bytes(b"kept")
    with pytest.raises(UserError, match=r"mine/4 holds weights.safetensors, so it is not a baseline"):
        update_baseline(baseline, [enough], "a run folder by mistake")
    assert files() == before | {baseline / "mine/4/weights.safetensors": b"kept"}


# --- what it promises: 10,000 gates of five recipes with four accuracies each, which go up and down together


def trained(draw, seeds, harm=0):
    """Accuracies (DRAWS, recipes, kinds, seeds) on 360 examples; `harm` more fall to each attack on one recipe."""
    size = (DRAWS, 5, seeds)
    clean = 356 - draw.binomial(12, 0.5, size) - draw.binomial(360, 0.003, size)
    robust = clean - 60 - draw.binomial(80, 0.5, size) - np.array([harm, 0, 0, 0, 0])[:, None]
    apgd = robust - draw.binomial(8, 0.5, size)
    return np.stack([clean, robust, apgd, apgd - draw.binomial(2, 0.3, size)], axis=2) / 360


def alarms(p):
    """Share of the gates, a row of p-values each, in which anything failed."""
    reports = (
        GateReport(0.01, corrected({RECIPE: [GateFinding("", "ok", "", p=one) for one in row]}, 0.01)) for row in p
    )
    return np.mean([report.failed for report in reports])


@pytest.mark.slow
@pytest.mark.parametrize(("k", "m"), [(8, 3), (5, 3)])
def test_false_alarms_and_power_with_other_weights(k, m):
    draw = np.random.default_rng(5)
    baseline = trained(draw, k)
    honest = prediction_p(baseline, trained(draw, m), 1 / 360).reshape(DRAWS, -1)
    assert alarms(honest) <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / DRAWS)
    harmed = prediction_p(baseline, trained(draw, m, harm=54), 1 / 360).reshape(DRAWS, -1)
    assert alarms(harmed) > (0.95 if k == 8 else 0.5)  # 15 points


@pytest.mark.slow
def test_false_alarms_and_power_with_the_same_weights():
    """20 tests, in each of which some examples flip by the attack's chance alone."""
    draw = np.random.default_rng(5)
    flipped = draw.binomial(draw.choice([0, 1, 3, 10, 30], (DRAWS, 20)), 0.9)
    lost = draw.binomial(flipped, 0.5)
    assert alarms(mcnemar(lost, flipped - lost)) <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / DRAWS)
    harm = np.array([36, *[0] * 19])  # examples of 360
    assert alarms(mcnemar(lost + harm, flipped - lost)) > 0.95
