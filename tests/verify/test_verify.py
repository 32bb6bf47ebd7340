import numpy as np
import pytest
import torch
from torch import nn

from bench.core import progress, seeds
from bench.core.attack_specs import make_attacks
from bench.core.contracts import Attack
from bench.core.example_table import Threat, accuracy, attack_specs
from bench.core.records import SCHEMA, AttackResult, Record, Sanity
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import evaluate_split
from bench.verify.attack_again import DRAWS, SAMPLE, attack_again, column_again, misses
from bench.verify.certify_again import WORK, certified_by, certify_again
from bench.verify.leakage import check_leakage
from bench.verify.table_checks import check_distances, check_labels, check_predictions
from bench.verify.witnesses import WITNESS_CHECKS, check_contradictions, check_witnesses
from tests.certifying import Exact, Searching
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE, EPS = (1, 5, 5), 0.03
THREAT = ThreatModel("Linf", EPS)


def record_of(table, threat=THREAT):
    """A record as far as the checks read it."""
    result = AttackResult(robust_acc=0, ci95=(0, 1), forwards=0, backwards=0, seconds=0)
    return Record(
        schema=SCHEMA, suite=None, dataset="", model="", parameters=0, defense="", seed=0,
        threat=Threat(threat.norm, threat.eps), config={}, config_hash="", n_examples=len(table["index"]),
        clean=accuracy(table["clean"]), attacks=dict.fromkeys(attack_specs(table), result), worst=None,
        certifiers={}, training=None, sanity=Sanity("unchecked", []), artifacts={}, provenance={},
    )  # fmt: skip


def context_of(model, test, batch_size=16, threat=THREAT, seed=0):
    return EvalContext(model=model, test=test, threat=threat, batch_size=batch_size, seed=seed)


@pytest.fixture(scope="module")
def finished():
    """model, test split, table, record, witnesses of a finished evaluation that broke some examples."""
    model = linear_model(SHAPE, 4)
    batch = interior_batch(model, SHAPE, 40)
    batch.y[:5] = (batch.y[:5] + 1) % 4
    test = Split.of_tensors(batch.x, batch.y)
    found = evaluate_split(context_of(model, test), make_attacks(["random-noise", "pgd-10"], THREAT))
    assert 5 < len(found.witnesses["index"]) < 35
    return model, test, found.table, record_of(found.table), found.witnesses


@pytest.fixture
def run(finished):
    """A copy of it, to be changed."""
    model, test, table, record, witnesses = finished
    table, witnesses = ({key: array.copy() for key, array in arrays.items()} for arrays in (table, witnesses))
    return model, test, table, record, witnesses


def outcomes(findings):
    return {finding.name: finding.outcome for finding in findings}


def witnesses_judged(run, **changed):
    model, test, table, record, witnesses = run
    context = context_of(model, test)
    return outcomes(check_witnesses(context, changed.pop("table", table), record, witnesses | changed))


def failing(judged):
    return {name for name, outcome in judged.items() if outcome == "failed"}


def test_an_honest_evaluation_passes_everything(run):
    model, test, table, _, _ = run
    assert set(witnesses_judged(run).values()) == {"passed"}
    assert check_labels(table, test.y.numpy()).outcome == "passed"
    assert check_predictions(context_of(model, test, 7), table).outcome == "passed"
    assert "failed" not in outcomes(check_leakage(table, 16)).values()


COMPLETE, WITHIN, BOX, WRONG = WITNESS_CHECKS


def moved(x_adv, by):
    x_adv = x_adv.copy()
    x_adv[0, 0, 0, 0] += np.float32(by)
    return x_adv


@pytest.mark.parametrize(("change", "fails"), [
    (lambda w, _: {"x_adv": moved(w["x_adv"], 2 * EPS)}, {WITHIN}),
    (lambda w, x: {"x_adv": x[w["index"]] + (w["x_adv"] - x[w["index"]]) * np.float32(1 + 1e-5)}, {WITHIN}),
    (lambda w, x: {"x_adv": x[w["index"]] + (w["x_adv"] - x[w["index"]]) * 40}, {WITHIN, BOX}),
    (lambda w, _: {"x_adv": moved(w["x_adv"], np.nan)}, {WITHIN, BOX, WRONG}),
    (lambda w, x: {"x_adv": x[w["index"]]}, {WRONG}),
    (lambda w, _: {key: value[1:] for key, value in w.items()}, {COMPLETE}),
    (lambda w, _: {key: np.concatenate([value, value[:1]]) for key, value in w.items()}, {COMPLETE}),
    (lambda w, _: {"x_adv": w["x_adv"][:, :, :3]}, set(WITNESS_CHECKS)),
    (lambda w, _: {"x_adv": w["x_adv"].astype(np.float64)}, set(WITNESS_CHECKS)),
    (lambda w, _: {"index": w["index"] + 1000}, set(WITNESS_CHECKS)),
    (lambda w, _: {"index": w["index"] - 41}, set(WITNESS_CHECKS)),
    (lambda w, _: {"attack": np.full(len(w["index"]), "apgd")}, set(WITNESS_CHECKS)),
])  # fmt: skip
def test_each_lie_about_a_witness_fails_the_check_that_is_of_it(change, fails, run):
    _, test, _, _, witnesses = run
    assert failing(witnesses_judged(run, **change(witnesses, test.canvas.numpy()))) == fails


def test_a_witness_of_an_attack_that_the_example_survived_fails(run):
    table, witnesses = run[2], run[4]
    survived = table["robust/random-noise"][witnesses["index"]]
    assert survived.any()
    attack = np.where(survived, "random-noise", witnesses["attack"])
    assert failing(witnesses_judged(run, attack=attack)) == {COMPLETE}


def test_an_example_that_is_wrong_already_needs_no_witness_and_may_have_none(run):
    witnesses, x = run[4], run[1].canvas.numpy()
    assert not run[2]["clean"][0]
    more = {
        "index": np.append(witnesses["index"], 0),
        "x_adv": np.concatenate([witnesses["x_adv"], x[:1]]),
        "attack": np.append(witnesses["attack"], "pgd-10"),
    }
    assert failing(witnesses_judged(run, **more)) == {COMPLETE}


@pytest.mark.parametrize("claims", [True, False])
def test_a_table_that_says_other_than_its_witnesses_fails(claims, run):
    """An example that fell is called robust, and a robust one fallen."""
    table = {key: column.copy() for key, column in run[2].items()}
    robust = table["robust/random-noise"] & table["robust/pgd-10"]
    row = np.flatnonzero(table["clean"] & (robust != claims))[0]
    table["robust/random-noise"][row] = table["robust/pgd-10"][row] = claims
    assert failing(witnesses_judged(run, table=table)) == {COMPLETE}


def test_witnesses_are_judged_by_the_threat_model_of_their_attack(run):
    """A second threat model, of twice the eps, has witnesses of its own, farther away."""
    model, test, table, record, witnesses = run
    spec = "pgd-10:eps=0.06"
    threat = ThreatModel("Linf", 0.06)
    far = evaluate_split(context_of(model, test, threat=threat), make_attacks(["pgd-10"], threat))
    table = table | {f"robust/{spec}": far.table["robust/pgd-10"]}
    n = len(far.witnesses["index"])
    both = {
        "index": np.concatenate([witnesses["index"], far.witnesses["index"]]),
        "x_adv": np.concatenate([witnesses["x_adv"], far.witnesses["x_adv"]]),
        "attack": np.concatenate([witnesses["attack"], np.full(n, spec)]),
    }
    assert set(outcomes(check_witnesses(context_of(model, test), table, record, both)).values()) == {"passed"}
    under_the_smaller = both | {"attack": np.concatenate([witnesses["attack"], np.full(n, "pgd-10")])}
    found = outcomes(check_witnesses(context_of(model, test), table, record, under_the_smaller))
    assert {COMPLETE, WITHIN} <= failing(found)


@pytest.mark.parametrize(("change", "outcome"), [(0, "passed"), (1, "failed")])
def test_predictions_are_the_models(change, outcome, run):
    model, test, table, _, _ = run
    prediction = table["prediction"].copy()
    prediction[20] = (prediction[20] + change) % 4
    assert check_predictions(context_of(model, test), table | {"prediction": prediction}).outcome == outcome


class TwoLogits(nn.Module):
    """Class 1 is ahead of class 0 by `gap`, on every image."""

    def __init__(self, gap):
        super().__init__()
        self.gap = gap

    def forward(self, x):
        return torch.tensor([1 - self.gap, 1]).expand(len(x), 2)


@pytest.mark.parametrize(("gap", "outcome"), [(1e-5, "warning"), (1e-3, "failed")])
def test_a_near_tie_may_come_out_differently_and_warns(gap, outcome):
    test = Split.of_tensors(torch.rand(6, *SHAPE), torch.zeros(6, dtype=torch.int64))
    table = {
        "index": np.arange(6), "label": np.zeros(6, np.int64), "prediction": np.zeros(6, np.int64),
        "clean": np.ones(6, np.bool_), "robust/random-noise": np.zeros(6, np.bool_),
    }  # fmt: skip
    assert check_predictions(context_of(TwoLogits(gap), test, 4), table).outcome == outcome
    witnesses = {"index": np.arange(6), "x_adv": test.canvas.numpy(), "attack": np.full(6, "random-noise")}
    found = check_witnesses(context_of(TwoLogits(-gap), test, 4), table, record_of(table), witnesses)
    assert outcomes(found)[WRONG] == outcome


@pytest.mark.parametrize(("gap", "claimed"), [(1.0, 2), (-1.0, -1)])
def test_a_class_that_there_is_not_is_no_near_tie(gap, claimed):
    test = Split.of_tensors(torch.rand(6, *SHAPE), torch.zeros(6, dtype=torch.int64))
    context = context_of(TwoLogits(gap), test, 4)
    assert check_predictions(context, {"prediction": np.full(6, claimed)}).outcome == "failed"


def test_a_label_that_is_not_the_data_sets_fails(run):
    table = run[2]
    label = table["label"].copy()
    label[3] += 1
    found = check_labels(table | {"label": label}, run[1].y.numpy())
    assert found.outcome == "failed"
    assert "test example 3" in found.evidence


@pytest.mark.parametrize(("distance", "robust", "outcome"), [
    ([0.01, 0.029, 0.031, np.inf], [0, 0, 1, 1], "passed"),
    ([0.01, 0.031, 0.031, np.inf], [0, 0, 1, 1], "failed"),
    ([0.01, 0.029, 0.029, np.inf], [0, 0, 1, 1], "failed"),
    ([np.nan, 0.029, 0.031, np.inf], [0, 0, 1, 1], "failed"),
])  # fmt: skip
def test_robust_follows_from_the_distances_of_a_minimum_norm_attack(distance, robust, outcome):
    table = {"index": np.arange(4), "clean": np.ones(4, np.bool_), "robust/fab": np.array(robust, np.bool_)}
    table["distance/fab"] = np.array(distance, np.float32)
    assert [found.outcome for found in check_distances(record_of(table), table)] == [outcome]


class Optimal(Attack):
    """Goes to the point that is worst for a linear model, on at most the first `most` examples that it sees."""

    most = 1000

    def perturb(self, model, batch, threat, *, generator):
        (weight,) = (p for p in model.parameters() if p.dim() == 2)
        logits = model(batch.x)
        other = logits.scatter(1, batch.y[:, None], -torch.inf).argmax(dim=1)
        step = threat.eps * (weight[other] - weight[batch.y]).sign().reshape(batch.x.shape)
        step[self.most :] = 0
        return batch.x + step


class OptimalOnOne(Optimal):
    most = 1


def again(run, table, attack=Optimal, sample=64, seed=0, own=Optimal):
    """The run's own attack is the same, unless `own` is another, as by an honest run of weaker attacks."""
    context = context_of(*run[:2], batch_size=64, seed=seed)
    return attack_again(context, table, {"optimal": attack()}, {"its-own": own()}, sample)[0]


def test_examples_that_are_truly_robust_stand_the_second_attack(run):
    model, test, table, _, _ = run
    margin = exact_margin(model, test.take(torch.arange(40)), THREAT).numpy()
    claimed = table["robust/random-noise"] & table["robust/pgd-10"]
    assert (margin[claimed] > 0).all()
    found = again(run, table)
    assert found.outcome == "passed"
    assert f"0 of {claimed.sum()}" in found.evidence


class OptimalWithOtherNumbers(Optimal):
    """Breaks nothing with the random numbers of the first draw."""

    def perturb(self, model, batch, threat, *, generator):
        if generator.initial_seed() == seeds.derive(0, "verify", 0):
            return batch.x
        return super().perturb(model, batch, threat, generator=generator)


def test_what_one_draw_of_the_attack_misses_another_finds_but_not_for_the_runs_own_attack(run):
    table = run[2] | {"robust/random-noise": run[2]["clean"], "robust/pgd-10": run[2]["clean"]}
    lucky, always = (again(run, table, attack, own=Nothing) for attack in (OptimalWithOtherNumbers, Optimal))
    assert lucky == always
    assert again(run, table, own=OptimalWithOtherNumbers).outcome == "weaker"


class Nothing(Attack):
    def perturb(self, model, batch, threat, *, generator):
        return batch.x


def test_an_honest_run_whose_attacks_are_weak_is_weaker_and_has_not_failed(run):
    """Its own attack, repeated, breaks no more than it did; a forged claim is broken by the run's own attack."""
    table = run[2] | {"robust/random-noise": run[2]["clean"], "robust/pgd-10": run[2]["clean"]}
    found = again(run, table, own=Nothing)
    assert found.outcome == "weaker"
    assert found.evidence.startswith("weaker than optimal: ")
    forged = again(run, table)
    assert forged.outcome == "failed"
    assert "own its-own breaks" in forged.evidence


def test_a_false_claim_of_robustness_fails_and_a_single_slip_warns(run):
    table = run[2] | {"robust/random-noise": run[2]["clean"], "robust/pgd-10": run[2]["clean"]}
    assert again(run, table).outcome == "failed"
    assert again(run, table, OptimalOnOne).outcome in ("warning", "passed")
    fell = np.flatnonzero(run[2]["clean"] & ~run[2]["robust/pgd-10"])
    one = run[2] | {
        "robust/random-noise": run[2]["robust/random-noise"].copy(),
        "robust/pgd-10": run[2]["robust/pgd-10"].copy(),
    }
    one["robust/random-noise"][fell[0]] = one["robust/pgd-10"][fell[0]] = True
    found = again(run, one)
    assert found.outcome == "warning"
    assert f"the first is {fell[0]}" in found.evidence


def test_the_sample_follows_from_the_seed_and_has_its_size(run):
    table = run[2] | {"robust/random-noise": run[2]["clean"], "robust/pgd-10": run[2]["clean"]}
    texts = [again(run, table, sample=6, seed=seed).evidence for seed in (0, 0, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1
    assert all(" of 6 broken" in text for text in texts)


def test_all_claims_are_attacked_unless_there_are_very_many(run, monkeypatch):
    """Of a larger number a sample, whose miss probability is said; if one of it falls, all the others too."""
    table = run[2] | {"robust/random-noise": run[2]["clean"], "robust/pgd-10": run[2]["clean"]}
    claimed, fell = int(run[2]["clean"].sum()), int((run[2]["clean"] & ~run[2]["robust/pgd-10"]).sum())
    finding, fallen = attack_again(context_of(*run[:2]), table, {"optimal": Optimal()}, {})
    assert f" of {claimed} broken (all that are claimed robust)" in finding.evidence
    assert len(fallen.points) >= fell
    for index, point in fallen.points.items():
        image = run[1].take(torch.tensor([index])).x
        assert THREAT.contains(torch.from_numpy(point)[None], image).all()
    assert set(fallen.arrays["index"].tolist()) == set(fallen.points)
    monkeypatch.setattr("bench.verify.attack_again.WHOLE", 10)
    monkeypatch.setattr("bench.verify.attack_again.SAMPLE", claimed - 1)
    assert len(attack_again(context_of(*run[:2]), table, {"optimal": Optimal()}, {})[1].points) == len(fallen.points)
    quiet, _ = attack_again(context_of(*run[:2]), table, {"nothing": Nothing()}, {})
    assert "would be missed with a probability of" in quiet.evidence


def test_a_sample_misses_false_claims_as_the_hypergeometric_formula_says():
    assert misses(10, 10) == "1 false of 10 would be missed with a probability of 0"
    assert misses(5, 10) == "1 false of 10 would be missed with a probability of 0.5"
    probability = float(misses(SAMPLE, 10_000).rpartition(" ")[2])
    assert probability < 1e-4


def test_an_honest_column_is_repeated_by_its_attack_and_seed(run):
    """The same batches and the same random numbers: exactly the same examples."""
    model, test, table, _, _ = run
    for spec, planned in make_attacks(["random-noise", "pgd-10"], THREAT).items():
        finding, fell, column = column_again(context_of(model, test), table, spec, planned, 0)
        assert (finding.outcome, column.fell, dict(fell.points)) == ("passed", [], {})
        assert column.attacked == int(table[f"robust/{spec}"].sum())


def test_a_column_that_hides_broken_examples_is_found(run):
    model, test, table, _, _ = run
    ((spec, planned),) = make_attacks(["pgd-10"], THREAT).items()
    hidden = np.flatnonzero(table["clean"] & ~table["robust/pgd-10"])
    one = {key: column.copy() for key, column in table.items()}
    one["robust/pgd-10"][hidden[0]] = True
    finding, fell, column = column_again(context_of(model, test), one, spec, planned, 0)
    assert (finding.outcome, column.fell, list(fell.points)) == ("warning", [hidden[0]], [hidden[0]])
    every = table | {"robust/pgd-10": table["clean"]}
    finding, fell, column = column_again(context_of(model, test), every, spec, planned, 0)
    assert (finding.outcome, column.fell) == ("failed", hidden.tolist())


def test_where_nothing_is_claimed_there_is_nothing_to_attack(run):
    table = run[2]
    bare = {key: table[key] for key in ("index", "label", "prediction", "clean")}
    assert again(run, bare).outcome == "not checkable"
    none = table | {"robust/random-noise": np.zeros(40, np.bool_)}
    assert again(run, none).outcome == "passed"
    only_far = bare | {"robust/pgd-10:eps=0.1": table["clean"]}
    assert again(run, only_far).outcome == "not checkable"


def test_a_leak_by_batch_fails_and_by_order_only_warns():
    n = 4000
    label = np.random.default_rng(0).integers(0, 10, n)
    table = {"index": np.arange(n), "label": label}
    noise = np.random.default_rng(1).random(n)
    by_batch = check_leakage(table | {"clean": noise > 0.3 * (np.arange(n) % 100 < 50)}, 256)
    by_order = check_leakage(table | {"clean": noise > 0.3 * (np.arange(n) < 1500)}, 256)
    neither = check_leakage(table | {"clean": noise > 0.15}, 256)
    assert [each.outcome for each in by_batch] == ["failed", "passed"]
    assert [each.outcome for each in by_order] == ["passed", "warning"]
    assert [each.outcome for each in neither] == ["passed", "passed"]
    assert "of each batch of 100" in by_batch[0].evidence


def certified_run(run, **claims):
    """The run with a certifier of linear models, who is asked again; claims replace its columns."""
    model, test, table, record, _ = run
    exact = exact_margin(model, test.take(torch.arange(40)), THREAT).numpy() > 0
    proven = claims.get("certified", exact & table["clean"])
    columns = {"certified/exact": proven, "radius/exact": claims.get("radius", (EPS * proven).astype(np.float32))}
    return model, test, table | columns, record


def asked_again(run, certifier, spec="exact", sample=64):
    model, test, table, _ = run
    return certify_again(context_of(model, test), table, spec, certifier, sample=sample)[0]


def test_certificates_that_hold_are_given_again(run):
    honest = certified_run(run)
    n = int(honest[2]["certified/exact"].sum())
    found = asked_again(honest, Exact())
    assert (found.outcome, found.evidence) == ("passed", f"seed 0: all {n} of the sample, of {n}")
    assert asked_again(honest, Exact(), sample=2).evidence == f"seed 0: all 2 of the sample, of {n}"
    assert asked_again(honest, Exact(), sample=None).evidence == f"seed 0: all {n} of the sample, of {n}"


def test_where_nothing_was_certified_nothing_is_asked(run):
    found = asked_again(certified_run(run, certified=np.zeros(40, bool)), Exact())
    assert (found.outcome, found.evidence) == ("passed", "it certified nothing")


def test_a_certificate_that_is_not_given_again_fails(run):
    honest = certified_run(run)
    fell = np.flatnonzero(run[2]["clean"] & ~honest[2]["certified/exact"])
    one_more = honest[2]["certified/exact"].copy()
    one_more[fell[0]] = True
    found = asked_again(certified_run(run, certified=one_more), Exact())
    assert found.outcome == "failed"
    assert found.evidence.endswith(f"the first is test example {fell[0]}")
    for factor in (1.5, 1.0095):
        radius = (EPS * honest[2]["certified/exact"]).astype(np.float32) * np.float32(factor)
        assert asked_again(certified_run(run, radius=radius), Exact()).outcome == "failed"


def test_a_certificate_on_the_edge_only_warns(run):
    """Asked again it has a positive margin that is not above what rounding may have done."""
    found = asked_again(certified_run(run), Exact(least=1e9))
    assert found.outcome == "warning"
    assert "within the rounding error" in found.evidence


def test_what_a_search_leaves_open_within_the_work_of_the_checker_does_not_count(run):
    """Whatever limit the record names: invented certificates of a search are open again."""
    claimed = certified_run(run)
    n = int(claimed[2]["certified/exact"].sum())
    model, test, table, _ = claimed
    found, kept = certify_again(context_of(model, test), table, "exact", Searching(least=1e9, nodes=10**6))
    assert found.outcome == "warning"
    assert f"{n} of {n} are open after {WORK} nodes and do not count" in found.evidence
    assert (kept.confirmed, len(kept.unconfirmed)) == ([], n)


def test_one_certificate_of_a_sample_that_is_not_given_again_is_a_reason_to_ask_for_all(run):
    claimed = certified_run(run)
    model, test, table, _ = claimed
    n = int(table["certified/exact"].sum())
    found, kept = certify_again(context_of(model, test), table, "exact", Searching(least=1e9), sample=1)
    assert f"{n} of {n}" in found.evidence
    found, kept = certify_again(context_of(model, test), table, "exact", Exact(), sample=1)
    assert len(kept.confirmed) == n
    proven = frozenset(np.flatnonzero(table["certified/exact"]).tolist())
    found, kept = certify_again(context_of(model, test), table, "exact", Searching(least=1e9), proven=proven)
    assert (found.outcome, found.evidence) == ("passed", "every certificate has a proof, which `bench recheck` checks")


def test_what_the_bracket_certified_is_asked_of_the_stage_that_did(run):
    model, test, table, record, _ = run
    margin = exact_margin(model, test.take(torch.arange(40)), THREAT).numpy()
    status = np.where(~table["clean"], "broken", np.where(margin > 0, "certified", "open"))
    decided = np.where(~table["clean"], "clean", np.where(margin > 0.1, "coarse", np.where(margin > 0, "exact", "")))
    narrowed = table | {"status": status, "decided_by": decided}
    assert list(certified_by(narrowed, EPS)) == list(dict.fromkeys(decided[status == "certified"]))
    for name, rows in (("coarse", margin > 0.1), ("exact", (margin > 0) & (margin <= 0.1))):
        proven, radius = certified_by(narrowed, EPS)[name]
        assert np.array_equal(proven, rows & table["clean"])
        assert np.array_equal(radius > 0, proven)
        assert asked_again((model, test, narrowed, record), Exact(), name).outcome == "passed"


def test_a_certified_example_that_falls_when_attacked_again_fails_however_rare_that_is(run):
    fell = np.flatnonzero(run[2]["clean"] & ~run[2]["robust/pgd-10"])[0]
    table = {key: column.copy() for key, column in run[2].items()}
    table["robust/random-noise"][fell] = table["robust/pgd-10"][fell] = True
    assert again(run, table).outcome == "warning"
    proven = np.arange(40) == fell
    found = again(run, table | {"certified/liar": proven, "radius/liar": (EPS * proven).astype(np.float32)})
    assert found.outcome == "failed"
    assert found.evidence.startswith("1 certified examples are broken")
    assert found.evidence.endswith(f"test example {fell}")


def test_where_only_certificates_are_claimed_they_are_attacked(run):
    bare = {key: run[2][key] for key in ("index", "label", "prediction", "clean")}
    table = bare | {key: column for key, column in certified_run(run)[2].items() if key.endswith("/exact")}
    found = again(run, table)
    assert found.outcome == "passed"
    assert f"0 of {table['certified/exact'].sum()} broken" in found.evidence


def test_certificates_and_witnesses_must_not_contradict_one_another(run):
    _, test, _, record, witnesses = run
    honest = certified_run(run)[2]
    assert check_contradictions(test, honest, witnesses, record).outcome == "passed"
    none = {key: column[:0] for key, column in witnesses.items()}
    assert check_contradictions(test, honest, none | {"x_adv": np.zeros(0, np.float32)}, record).outcome == "passed"
    broken = witnesses["index"][0]
    claimed = honest["certified/exact"] | (np.arange(40) == broken)
    found = check_contradictions(test, certified_run(run, certified=claimed)[2], witnesses, record)
    assert found.outcome == "failed"
    assert f"test example {broken}" in found.evidence
    x = test.take(torch.tensor([broken])).x
    distance = float(THREAT.distance(torch.from_numpy(witnesses["x_adv"][:1]), x))
    for share, outcome in ((0.99, "passed"), (1.01, "failed")):  # a radius holds what is nearer
        radius = np.where(np.arange(40) == broken, distance * share, 0).astype(np.float32)
        found = check_contradictions(test, certified_run(run, radius=radius)[2], witnesses, record)
        assert found.outcome == outcome
    assert found.evidence == f"test example {broken} has a witness inside its certified radius"


def test_a_witness_at_the_edge_of_the_ball_contradicts_a_certificate(run):
    """As a forger leaves it who takes an example's fall out of the table and leaves its witness."""
    _, test, table, record, witnesses = run
    bare = {key: table[key] for key in ("index", "label", "prediction", "clean")}
    broken = np.arange(40) == witnesses["index"][0]
    x = test.take(torch.from_numpy(np.flatnonzero(broken))).x.numpy()
    edge = {
        "index": witnesses["index"][:1],
        "x_adv": x + np.float32(0.99999) * np.float32(EPS) * np.sign(witnesses["x_adv"][:1] - x),
    }
    status = np.select([~table["clean"], broken], ["broken", "certified"], "open")
    by_bracket = {"status": status, "decided_by": np.select([~table["clean"], broken], ["clean", "x"], "")}
    by_certifier = {"certified/x": broken, "radius/x": (EPS * broken).astype(np.float32)}
    for claim in (by_bracket, by_certifier):
        for slip, outcome in ((1.0, "failed"), (1.1, "passed")):
            there = edge | {"x_adv": (x + slip * (edge["x_adv"] - x)).astype(np.float32)}
            assert check_contradictions(test, bare | claim, there, record).outcome == outcome


def test_the_progress_of_a_verification_moves_inside_its_checks(run, monkeypatch, capsys):
    """Plain lines, as there is no terminal; none with `--quiet`, which disables the logger."""
    monkeypatch.setattr(progress, "LINE_PAUSE", 0.0)
    monkeypatch.setenv("CI", "true")
    model, test, table, _, _ = run
    planned = make_attacks("pgd-10", THREAT)["pgd-10"]
    claimed = int(table["robust/pgd-10"].sum())
    for quiet in (False, True):
        monkeypatch.setattr(progress.LOGGER, "disabled", quiet)
        attack_again(context_of(model, test, 4), table, {"pgd-10": planned.attack}, {}, None)
        column_again(context_of(model, test, 4), table, "pgd-10", planned, 0)
        lines = capsys.readouterr().err.splitlines()
        again = [line for line in lines if line.startswith("verify: attacked again")]
        column = [line for line in lines if line.startswith("verify: pgd-10 run again")]
        assert len(again) == (0 if quiet else DRAWS * -(-claimed // 4))
        assert len(column) == (0 if quiet else -(-int(table["clean"].sum()) // 4))
