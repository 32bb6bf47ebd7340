"""A row says what the records say, and no more than the tests allow."""

import csv
import io

import msgspec
import numpy as np
import pytest

from bench.core import clopper_pearson, registry
from bench.core.config import BoundsConfig
from bench.core.record_files import read_record, write_record
from bench.core.records import Artifact, AttackResult, Sanity
from bench.core.verification import write_verification
from bench.verify.report import Finding
from leaderboard.board_data import Cost
from leaderboard.board_tables import render_boards
from leaderboard.build_board import _decided, build_board
from leaderboard.published_results import Contest, add_contest
from leaderboard.publishing import add_runs
from leaderboard.significance import recipe_interval
from leaderboard.training_passes import computes_bounds
from leaderboard.verification_files import write_checked
from tests.publish.published import ABOUT, bracket_of, checked_of, flags, publish, table_of, write_run


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def rows(results):
    return {row.name: row for row in build_board(results, "digits").rows}


def test_accuracies_are_means_over_seeds_with_the_interval_of_the_recipe(results):
    publish(results, "mine", [table_of(flags(100, 60), certified=flags(100, 20)), table_of(flags(100, 70))])
    publish(results, "other", [table_of(flags(100, 50), certified=flags(100, 20))] * 2)
    found = rows(results)
    attacked = found["mine"].attacked
    assert (attacked.acc, attacked.spread) == (pytest.approx(0.65), pytest.approx(0.1 / np.sqrt(2)))
    assert attacked.interval_of == "recipe"
    assert (attacked.low, attacked.high) == pytest.approx([float(end) for end in recipe_interval([0.6, 0.7], 100)])
    assert attacked.new_seed == (0.0, 1.0)  # of two seeds ten points apart
    assert found["mine"].certified is None  # one of its seeds was not certified
    assert found["other"].certified.acc == 0.2
    assert found["mine"].clean.acc == 1.0
    assert found["mine"].attacks[0].accuracy == attacked
    assert found["other"].certified.spread == 0


def test_one_seed_and_fixed_weights_have_the_interval_of_these_weights(results):
    publish(results, "one", [table_of(flags(100, 60))])
    publish(results, "fixed", [table_of(flags(100, 60))] * 2, trained=False)
    for row in rows(results).values():
        assert (row.attacked.interval_of, row.attacked.spread, row.attacked.new_seed) == ("weights", None, None)
        ends = [float(end) for end in clopper_pearson.interval(60, 100)]
        assert (row.attacked.low, row.attacked.high) == pytest.approx(ends)


def test_the_most_robust_is_first_and_what_was_never_attacked_last(results):
    nothing = {key: value for key, value in table_of(flags(50, 10)).items() if key[:6] not in ("robust", "passes")}
    publish(results, "weak", [table_of(flags(50, 10))])
    publish(results, "unattacked", [nothing], worst=None)
    publish(results, "strong", [table_of(flags(50, 40))])
    assert [row.name for row in build_board(results, "digits").rows] == ["strong", "weak", "unattacked"]
    assert rows(results)["unattacked"].attacked is None
    assert rows(results)["unattacked"].rank is None


def test_ranks_and_groups(results):
    for name, hits in (("a", (80, 81, 82)), ("b", (79, 80, 82)), ("c", (20, 21, 22)), ("one-seed", (99,))):
        publish(results, name, [table_of(flags(100, each)) for each in hits])
    found = rows(results)
    ranks = {name: (row.rank, row.rank_low, row.rank_high, row.group) for name, row in found.items()}
    assert ranks == {"a": (1, 1, 2, 1), "b": (1, 1, 2, 1), "c": (3, 3, 3, 2), "one-seed": (None, None, None, None)}


def test_the_passes_of_a_training_that_computes_bounds_are_not_shown(results):
    for defense in ("kw", "pgd-at", "plugin"):
        publish(results, defense, [table_of(flags(100, 60))], defense=defense)
    found = {name: (row.cost.training_passes, row.cost.computes_bounds) for name, row in rows(results).items()}
    assert found["kw"] == (None, True)
    assert found["pgd-at"] == found["plugin"] != (None, True)
    boards = [build_board(results, "digits")]
    markdown, text = render_boards(boards, "markdown"), render_boards(boards, "csv")
    assert "Passes `-`: the training computes bounds, which are not counted as passes." in markdown
    passes = {row["name"]: row["training_passes"] for row in csv.DictReader(io.StringIO(text))}
    assert passes["kw"] == ""
    assert passes["pgd-at"]


def test_what_computes_bounds_is_found_without_importing_the_defense(results):
    """The file of a defense tells it, for all built-in defenses; of a plugin only the passes are known."""
    publish(results, "x", [table_of(flags(10, 6))])
    record = read_record(results / "digits" / "x" / "0")
    for name in registry.defense.names():
        bounds = issubclass(registry.defense.get(name).config_class, BoundsConfig)
        assert computes_bounds(msgspec.structs.replace(record, defense=name)) == bounds, name
    few = msgspec.structs.replace(record.training, epochs=10, backwards=9)
    assert computes_bounds(msgspec.structs.replace(record, defense="plugin", training=few))


def test_a_contest_lowers_the_row_and_is_told(results):
    publish(results, "mine", [table_of(flags(10, 6))])
    found = Contest(by="X", broken=[0], witnesses=Artifact("ab", 1), finished="today")
    add_contest(results, "digits", "mine", 0, found)
    row = rows(results)["mine"]
    assert row.attacked.acc == 0.5
    assert row.note == "Seed 0: X broke 1 more examples (today)."
    assert row.seeds[0].attacked == 0.5
    assert row.attacked_by == ("pgd-50", "contest by X")


def test_a_bracket_is_both_ends(results):
    status = np.array(["certified", "open", "broken", "broken"])
    by = np.array(["ibp", "", "square", "clean"])
    clean = np.array([True, True, True, False])
    table = table_of(clean.copy(), clean=clean, status=status, decided_by=by)
    publish(results, "mine", [table], bracket=bracket_of(table))
    row = rows(results)["mine"]
    assert (row.certified.acc, row.attacked.acc, row.clean.acc) == (0.25, 0.5, 0.75)
    assert row.attacked_by == ("bracket",)
    assert (row.open, row.truncated, row.seeds[0].open, row.seeds[0].truncated) == (1.0, False, 1, False)
    cut = msgspec.structs.replace(bracket_of(table), truncated=True, time_limit=4.0)
    publish(results, "cut", [table], bracket=cut)
    assert (rows(results)["cut"].truncated, rows(results)["cut"].seeds[0].truncated) == (True, True)


def test_a_row_says_how_its_examples_were_decided(results):
    """Means over the seeds. A stage that a seed did not need counts as nothing there."""
    by = [np.array(["ibp", "", "bab", "clean"]), np.array(["ibp", "ibp", "ibp", "clean"])]
    clean, tables, brackets = np.array([True, True, True, False]), [], []
    for names in by:
        status = np.select([names == "", np.isin(names, ["ibp", "bab"])], ["open", "certified"], "broken")
        tables.append(table_of(clean.copy(), clean=clean, status=status, decided_by=names))
        brackets.append(bracket_of(tables[-1]))
    search = msgspec.structs.replace(brackets[0].stages["bab"], nodes=12, proofs=1)
    brackets[0] = msgspec.structs.replace(brackets[0], stages=brackets[0].stages | {"bab": search})
    publish(results, "one", tables[:1], bracket=brackets[0])
    publish(results, "fixed", tables[1:], bracket=brackets[1])
    found = rows(results)
    ibp, bab, wrong = found["one"].decided
    assert (ibp.stage, ibp.certified, ibp.nodes, ibp.proofs) == ("ibp", 1.0, None, None)
    assert (bab.tried, bab.certified, bab.broken, bab.forwards, bab.seconds) == (4.0, 1.0, 0.0, 50.0, 1.0)
    assert (bab.nodes, bab.proofs, wrong.broken) == (12.0, 1.0, 1.0)
    assert [each.stage for each in found["fixed"].decided] == ["ibp", "clean"]
    assert (found["one"].budget, found["one"].open) == (10, 1.0)
    both = list(_decided(brackets))
    assert [(each.stage, each.certified, each.nodes) for each in both] == [
        ("ibp", 2.0, None), ("bab", 0.5, 6.0), ("clean", 0.0, None),
    ]  # fmt: skip


def test_the_worst_verdict_of_the_seeds_counts(results, tmp_path):
    publish(results, "mine", [table_of(flags(10, 6))], verdict="no-warnings")
    same = {"defense": "mine", "config_hash": "mine", "seed": 1, "sanity": Sanity("suspect", ["why"])}
    add_runs(results, "mine", ABOUT, [write_run(tmp_path / "run", table_of(flags(10, 6)), weights="w", **same)])
    assert (rows(results)["mine"].verdict, rows(results)["mine"].reasons) == ("suspect", ("why",))


def test_cost_and_command_and_status(results):
    publish(results, "mine", [table_of(flags(10, 6))] * 2, url="https://example.org/w")
    publish(results, "fixed", [table_of(flags(10, 6))], trained=False)
    found = rows(results)
    assert found["mine"].cost == Cost(
        training_epochs=1.0,
        training_seconds=10.0,
        training_passes=7000.0,
        evaluation_passes=500.0,
        hardware="a machine, 1 thread",
    )
    assert found["mine"].command == "bench run --defense mine --suite digits --seeds 0,1"
    assert (found["mine"].status, found["fixed"].status) == ("re-checkable", "not re-checkable")
    assert (found["mine"].kind, found["fixed"].kind) == ("recipe", "weights")
    assert found["fixed"].cost.training_seconds is None
    assert found["mine"].seeds[1].weights_url == "https://example.org/w/1/weights.safetensors"


def test_a_recipe_of_which_one_seed_is_published_with_its_files_is_partly_re_checkable(results, tmp_path):
    home = publish(results, "mine", [table_of(flags(10, 6))])
    run = write_run(tmp_path / "run", table_of(flags(10, 7)), weights="w", defense="mine", config_hash="mine", seed=1)
    for file in ("weights.safetensors", "witnesses.npz"):
        (run / file).write_bytes(b"content")
    assert rows(results)["mine"].status == "not re-checkable"
    add_runs(results, "mine", ABOUT, [run], with_files=[1])
    found = rows(results)["mine"]
    assert (found.status, [seed.status for seed in found.seeds]) == (
        "partly re-checkable", ["can be retrained", "re-checkable"],
    )  # fmt: skip
    assert (home / "1" / "weights.safetensors").read_bytes() == b"content"
    assert not (home / "0" / "weights.safetensors").exists()


def test_curves_over_eps_of_one_attack_and_of_distances(results):
    table = table_of(flags(10, 6)) | {"robust/pgd-50:eps=0.1": flags(10, 8), "passes/pgd-50:eps=0.1": np.full(10, 9)}
    distance = np.linspace(0.05, 0.5, 10).astype(np.float32)
    table |= {"robust/fmn": distance > 0.2, "passes/fmn": np.full(10, 9), "distance/fmn": distance}
    home = publish(results, "mine", [table])
    assert [curve.label for curve in rows(results)["mine"].curves] == ["pgd-50"]  # fmn is none of the suite's attacks
    write_checked(home / "0", checked_of(home / "0", {spec: [] for spec in ("pgd-50", "pgd-50:eps=0.1", "fmn")}))
    pgd, fmn = rows(results)["mine"].curves
    assert (pgd.label, pgd.eps, pgd.acc) == ("pgd-50", (0.0, 0.1, 0.2), (1.0, 0.8, 0.6))
    assert (fmn.label, fmn.eps[0], fmn.eps[-1]) == ("fmn", 0.0, 0.4)
    assert fmn.acc == pytest.approx([(distance > eps * 1.00001).mean() for eps in fmn.eps])


def test_reported_entries_stand_beside_without_a_rank(results):
    publish(results, "mine", [table_of(flags(10, 6))] * 2)
    home = results / "digits" / "theirs"
    home.mkdir()
    (home / "about.toml").write_bytes(msgspec.toml.encode(ABOUT))
    (home / "reported.json").write_text(
        '{"name": "T", "dataset": "digits", "clean_acc": "90.00", "autoattack_acc": "70.5", "eps": "0.2"}'
    )
    row = rows(results)["theirs"]
    assert (row.kind, row.status, row.rank, row.verdict) == ("reported", "reported, not verified", None, "unchecked")
    assert (row.attacked.acc, row.clean.acc) == (pytest.approx(0.705), pytest.approx(0.9))
    assert (row.attacked.interval_of, row.rank_low, row.rank_high) == (None, None, None)
    assert (row.norm, row.eps) == ("Linf", 0.2)


def test_a_record_that_does_not_name_its_source_code_says_so(results):
    publish(results, "mine", [table_of(flags(100, 60))])
    assert rows(results)["mine"].seeds[0].provenance["source"] == "unknown"
    publish(results / "new", "new", [table_of(flags(100, 60))], provenance={"source": "0123456789ab"})
    assert rows(results / "new")["new"].seeds[0].provenance["source"] == "0123456789ab"


def test_the_verdict_hears_warnings_and_verifications_of_published_runs(results):
    warned = AttackResult(0.6, (0.4, 0.7), 1, 1, 1.0, warnings=["Square Attack has decreased"])
    entry = publish(results, "failed", [table_of(flags(100, 60))])
    publish(results, "fine", [table_of(flags(100, 60))])
    write_verification(entry / "0", [Finding("predictions", "failed", "3 differ")], attack="pgd", sample=1, seed=0)
    row = rows(results)["failed"]
    assert (row.verdict, row.reasons) == ("unreliable", ("verify predictions: 3 differ",))
    assert rows(results)["fine"].verdict == "no-warnings"
    record = read_record(entry / "0")
    write_record(entry / "0", msgspec.structs.replace(record, attacks={"pgd-50": warned}))
    row = rows(results)["failed"]
    assert (row.verdict, row.reasons) == ("suspect", ("attack-warnings: pgd-50: Square Attack has decreased",))


def test_curves_over_the_passes_of_an_attack(results):
    passes = np.array([10, 100, 1, 40, 100, 100])
    table = table_of(np.array([0, 1, 0, 0, 1, 0], bool), clean=np.array([1, 1, 1, 1, 1, 0], bool))
    publish(results, "mine", [table | {"passes/pgd-50": passes}])
    (curve,) = rows(results)["mine"].passes_curves
    assert (curve.label, curve.passes[0], curve.passes[-1]) == ("pgd-50", 1, 100)
    left = {n: acc * 6 for n, acc in zip(curve.passes, curve.acc, strict=True)}
    assert left[1] == pytest.approx(4)  # example 2 is broken after one pass
    assert [round(left[n]) for n in left if n in (9, 10, 40)] == [4, 3, 2]
    assert curve.acc[-1] == pytest.approx(2 / 6)


def test_a_curve_over_passes_needs_all_seeds(results):
    table = table_of(flags(10, 6))
    other = {key.replace("pgd-50", "autoattack"): column for key, column in table.items()}
    publish(results, "mine", [table, table_of(flags(10, 5)) | other])
    assert [curve.label for curve in rows(results)["mine"].passes_curves] == ["pgd-50"]
