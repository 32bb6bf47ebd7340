"""The bracket: who is decided by which stage, within which budget, and what stops it from lying."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from attacks.fgsm import FGSM
from bench.core.attack_specs import PlannedAttack, make_attacks
from bench.core.contracts import Attack, Certificate
from bench.core.errors import CheckError, UserError
from bench.core.records import Sanity
from bench.core.staged_attack import Stage
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate import bracket as module
from bench.evaluate.bracket import BracketPlan, measure_bracket, plan_bracket
from bench.evaluate.clean import measure_clean
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import evaluate_split
from bench.evaluate.partial_results import PartialResults
from tests.certifying import Complete, Exact, Liar, Searching, Slow, Smooth, calls, clock, limits, worst_points
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE = (1, 5, 5)
THREAT = ThreatModel("Linf", 0.03)


@pytest.fixture(autouse=True)
def _forget():
    calls.clear()
    limits.clear()


@pytest.fixture(autouse=True)
def _no_verdict(monkeypatch):
    """The sanity checks have tests of their own."""
    monkeypatch.setattr("bench.evaluate.evaluation.form_verdict", lambda *_, **__: Sanity("unchecked", []))


@pytest.fixture(autouse=True)
def _no_audit(request, monkeypatch):
    if "audit" not in request.node.name:
        monkeypatch.setattr("bench.evaluate.evaluation.audit_certificates", lambda *_: 0)


@pytest.fixture
def _clock(monkeypatch):
    """Only Slow takes any time."""
    for module_ in ("bench.evaluate.batch_results", "bench.core.time_limit"):
        monkeypatch.setattr(f"{module_}.time", clock)


@pytest.fixture
def linear():
    """A linear model, the split of 40 images of which five are labelled wrong, their exact margins (negative there)."""
    model = linear_model(SHAPE, 4)
    batch = interior_batch(model, SHAPE, 40)
    margin = exact_margin(model, batch, THREAT).numpy()
    batch.y[:5] = (batch.y[:5] + 1) % 4
    margin[:5] = -1
    assert 5 < (margin > 0).sum() < 30
    return model, Split.of_tensors(batch.x, batch.y), margin


@dataclass(frozen=True, kw_only=True)
class Half(Attack):
    """Goes to the worst point for examples of even number, and half the way there for the others."""

    def perturb(self, model, batch, threat, *, generator):
        way = torch.where(batch.index % 2 == 0, 1.0, 0.5)[:, None, None, None]
        return batch.x + way * (worst_points(model, batch, threat) - batch.x)


def planned(*stages, time_limit=None):
    return BracketPlan(stages, {"none": "a reason"}, 1000, time_limit)


def context_of(linear, threat=THREAT, **options):
    options = {"batch_size": 16, "seed": 0} | options
    return EvalContext(model=linear[0], test=linear[1], threat=threat, **options)


def evaluated(linear, plan, attacks=(), certifiers=None, **options):
    made = make_attacks(attacks, THREAT)
    return evaluate_split(context_of(linear, **options), made, certifiers=certifiers, bracket=plan)


HALF, COARSE = Stage("half", Half()), Stage("coarse", Exact(least=0.1))
EXACT, COMPLETE = Stage("exact", Exact()), Stage("complete", Complete())


def test_each_example_is_decided_by_the_first_stage_that_can(linear):
    found, margin = evaluated(linear, planned(HALF, COARSE, EXACT)), linear[2]
    even = np.arange(40) % 2 == 0
    right = np.arange(40) >= 5
    half = found.table["decided_by"] == "half"
    assert half[right & even & (margin < 0)].all()
    assert not half[margin > 0].any()
    expected = np.select([~right, half, margin > 0.1, margin > 0], ["clean", "half", "coarse", "exact"], "")
    assert np.array_equal(found.table["decided_by"], expected)
    status = np.select([expected == "", ~right | half], ["open", "broken"], "certified")
    assert np.array_equal(found.table["status"], status)
    assert (status == "open").any()


def test_the_result_follows_from_the_columns(linear):
    found = evaluated(linear, planned(HALF, COARSE, EXACT))
    result, status = found.bracket, found.table["status"]
    assert result.certified_acc == (status == "certified").mean() == (linear[2] > 0).mean()
    assert result.robust_acc == (status != "broken").mean()
    assert result.open == (status == "open").sum() > 0
    assert result.certified_ci95[0] < result.certified_acc < result.robust_acc < result.robust_ci95[1]
    assert result.skipped == {"none": "a reason"}
    stages = result.stages
    assert list(stages) == ["clean", "half", "coarse", "exact"]
    for name, stage in stages.items():
        mine = found.table["decided_by"] == name
        assert stage.certified == (mine & (status == "certified")).sum()
        assert stage.broken == (mine & (status == "broken")).sum()
    assert (stages["clean"].tried, stages["clean"].broken) == (40, 5)
    assert stages["half"].tried == 35
    assert stages["coarse"].tried == 35 - stages["half"].broken
    assert stages["exact"].tried == stages["coarse"].tried - stages["coarse"].certified
    assert stages["half"].forwards == 5 * 35  # four corners, and the evaluator's own question
    assert result.seconds == pytest.approx(sum(stage.seconds for stage in stages.values()), abs=0.01)


def test_a_complete_certifier_closes_the_bracket_with_witnesses(linear):
    found, margin = evaluated(linear, planned(COARSE, COMPLETE)), linear[2]
    assert found.bracket.open == 0
    assert found.bracket.certified_acc == found.bracket.robust_acc == (margin > 0).mean()
    fell = np.flatnonzero((margin < 0) & (np.arange(40) >= 5))
    assert found.witnesses["index"].tolist() == fell.tolist()
    assert set(found.witnesses["attack"]) == {"bracket"}


def test_the_interval_only_narrows(linear):
    """After every batch of every stage: whoever is decided stays so."""
    low, high = [], []

    def watch(decided, stage):
        steps.append(decided)

    model, test, _ = linear
    table = measure_clean(model, test, 16)
    before = np.full(40, "open")
    for n in range(4):
        steps: list[int] = []
        plan = planned(*(HALF, COARSE, EXACT)[:n])
        found = measure_bracket(context_of(linear), plan, table, report=watch)
        low.append(found.result.certified_acc)
        high.append(found.result.robust_acc)
        status = found.columns["status"]
        assert (status[before != "open"] == before[before != "open"]).all()
        assert sum(steps) == (status != "open").sum()
        before = status
    assert low == sorted(low)
    assert high == sorted(high, reverse=True)
    assert low[0] == 0
    assert low[-1] > low[1]
    assert high[-1] < high[0] == 35 / 40


def test_a_later_stage_does_not_change_an_earlier_decision(linear):
    """A cascade does not give decided examples to a stage, so Decisions is tested alone."""
    decisions = module.Decisions(3)
    yes, no = np.ones(3, bool), np.zeros(3, bool)
    decisions.decide("first", np.array([True, False, False]), np.array([False, True, False]))
    decisions.decide("second", no, yes)
    assert decisions.status.tolist() == ["broken", "certified", "certified"]
    assert decisions.decided_by == ["first", "first", "second"]
    assert (decisions.stages["second"].tried, decisions.stages["second"].certified) == (1, 1)


def test_certifiers_are_shown_the_worst_point_so_far(linear):
    evaluated(linear, planned(HALF, EXACT), batch_size=40)
    _, index, points = calls[0]
    model, test, _ = linear
    batch = test.take(torch.tensor(index))
    expected = Half()(model, batch, THREAT, generator=torch.Generator())
    assert torch.equal(points, expected)
    assert not torch.equal(points, batch.x)


@dataclass(frozen=True, kw_only=True)
class Still(Attack):
    """Stays."""

    def perturb(self, model, batch, threat, *, generator):
        return batch.x


def test_a_point_with_a_higher_margin_does_not_replace_the_worst(linear):
    evaluated(linear, planned(HALF, Stage("still", Still()), EXACT), batch_size=40)
    _, index, points = calls[0]
    assert torch.equal(points, Half()(linear[0], linear[1].take(torch.tensor(index)), THREAT, generator=None))


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize("stored", [True, False])
def test_a_time_limit_stops_between_batches_and_leaves_the_rest_open(stored, linear, tmp_path):
    slow = Stage("slow", Slow(pause=0.05), batch=5)
    parts = PartialResults(tmp_path, "it") if stored else None
    found = evaluated(linear, planned(slow, EXACT, time_limit=0.12), partial_results=parts)
    assert [name for name, _, _ in calls] == ["Slow"] * 3  # 0.05, 0.10, 0.15 s
    assert found.bracket.stages["slow"].tried == 15
    assert found.bracket.open == 35 - found.bracket.stages["slow"].certified
    assert found.bracket.seconds == 0.15
    assert (found.bracket.budget, found.bracket.time_limit) == (1000, 0.12)
    assert found.bracket.truncated
    if stored:  # the seconds that were spent count when the run goes on
        calls.clear()
        again = evaluated(linear, planned(slow, EXACT, time_limit=0.12), partial_results=parts)
        assert calls == []
        assert again.bracket == found.bracket


@pytest.mark.usefixtures("_clock")
def test_a_run_that_was_killed_goes_on_with_the_time_that_was_left(linear, tmp_path):
    slow = Stage("slow", Slow(pause=0.05), batch=5)
    evaluated(linear, planned(slow, time_limit=0.07), partial_results=PartialResults(tmp_path, "it"))
    assert len(calls) == 2
    evaluated(linear, planned(slow, time_limit=0.17), partial_results=PartialResults(tmp_path, "it"))
    assert len(calls) == 4  # two more, and not four


@pytest.mark.usefixtures("_clock")
def test_a_certifier_knows_how_much_of_the_time_limit_is_left(linear):
    found = evaluated(linear, planned(Stage("slow", Slow(pause=0.05, least=1e9), batch=16), time_limit=2.0))
    assert limits == pytest.approx([2.0, 1.95, 1.9])
    assert not found.bracket.truncated
    limits.clear()
    evaluated(linear, planned(Stage("slow", Slow(pause=0.05, least=1e9), batch=16)))
    assert limits == [np.inf] * 3


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize(
    ("stage", "open_examples", "truncated"),
    [
        (Stage("slow", Slow(pause=1.9, least=1e9), batch=40), True, False),
        (Stage("slow", Slow(pause=2.0, least=1e9), batch=40), True, True),  # it may have ended before it was ready
        (COMPLETE, False, False),
    ],
)
def test_a_bracket_is_truncated_if_the_time_was_spent_and_examples_are_open(stage, open_examples, truncated, linear):
    found = evaluated(linear, planned(stage, time_limit=2.0), batch_size=40)
    assert (found.bracket.open > 0, found.bracket.truncated) == (open_examples, truncated)


class Runaway:
    """A clock that is an hour further at every look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 3600.0
        return self.now


def test_without_a_time_limit_no_clock_decides(linear, monkeypatch):
    plan = planned(HALF, COARSE, *(Stage("searching", each, batch=7) for each in module.in_rounds(Searching(), 1000)))
    usual = evaluated(linear, plan)
    for name in ("time", "monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(time, name, Runaway())
    hurried = evaluated(linear, plan)
    assert hurried.bracket.seconds > 3600
    assert not hurried.bracket.truncated
    assert hurried.table.keys() == usual.table.keys()
    assert all(np.array_equal(hurried.table[key], usual.table[key]) for key in usual.table)


def test_a_search_comes_in_rounds_of_growing_limits_and_sees_all_open_examples(linear):
    rounds = module.in_rounds(Searching(), 100)
    assert [each.nodes for each in rounds] == [10, 100]
    assert [each.nodes for each in module.in_rounds(Searching(nodes=7), 10)] == [10]
    assert module.in_rounds(Exact(), 100) == [Exact()]
    found, margin = evaluated(linear, planned(*(Stage("searching", each, batch=20) for each in rounds))), linear[2]
    assert limits == [10, 10, 10, 100, 100, 100]
    index = np.arange(40)
    certified = (margin > 0) & (1 + 3 * index <= 100)
    assert np.array_equal(found.table["status"] == "certified", certified)
    stage = found.bracket.stages["searching"]
    assert (stage.tried, stage.certified) == (35, certified.sum())  # an example counts once
    first, needed = index[5:], 1 + 3 * index[5:]
    second = needed[~certified[first] | (needed > 10)]
    assert stage.nodes == np.minimum(needed, 10).sum() + np.minimum(second, 100).sum()
    assert found.bracket.stages["clean"].nodes is None


def test_a_node_of_a_certifier_may_count_as_several_sub_problems():
    @dataclass(frozen=True, kw_only=True)
    class Costly(Searching):
        node_cost = 50

    for budget, nodes in ((1, [1]), (99, [1]), (500, [10]), (1000, [10, 20]), (50_000, [10, 100, 1000])):
        assert [each.nodes for each in module.in_rounds(Costly(), budget)] == nodes


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_certifier_decides_an_example_whatever_the_others_and_the_batches_are(batch, linear):
    stages = [COARSE, *(Stage("searching", each) for each in module.in_rounds(Searching(), 1000))]
    whole = evaluated(linear, planned(*stages))
    other = evaluated(linear, planned(*stages), batch_size=batch)
    assert np.array_equal(other.table["decided_by"], whole.table["decided_by"])
    few = linear[1].take(torch.arange(10, 20))
    context = context_of((linear[0], Split.of_tensors(few.x, few.y)))
    alone = evaluate_split(context, {}, bracket=planned(COARSE)).table
    assert np.array_equal(alone["decided_by"] == "coarse", whole.table["decided_by"][10:20] == "coarse")


def test_rounds_do_not_read_each_others_partial_results(linear, tmp_path):
    rounds = [Stage("searching", Searching(nodes=n), batch=35) for n in (1, 2)]
    evaluated(linear, planned(*rounds), partial_results=PartialResults(tmp_path, "it"), batch_size=40)
    assert limits == [1, 2]


def test_a_bracket_resumes_from_partial_results_and_ends_the_same(linear, tmp_path):
    plan = planned(HALF, COARSE, COMPLETE)
    whole = evaluated(linear, plan, partial_results=PartialResults(tmp_path, "it"))
    n = len(calls)
    for path in sorted(tmp_path.iterdir())[::2]:
        path.unlink()
    again = evaluated(linear, plan, partial_results=PartialResults(tmp_path, "it"))
    assert 0 < len(calls) - n < n
    assert all(np.array_equal(whole.table[key], again.table[key]) for key in whole.table)
    assert np.array_equal(whole.witnesses["x_adv"], again.witnesses["x_adv"])


def test_examples_that_the_runs_attacks_and_certifiers_decide_are_not_tried_again(linear):
    found = evaluated(linear, planned(COMPLETE), ["pgd-10"], {"coarse": Exact(least=0.1)})
    table, margin = found.table, linear[2]
    by_pgd = table["clean"] & ~table["robust/pgd-10"]
    assert (table["decided_by"][by_pgd] == "pgd-10").all()
    assert (table["decided_by"][margin > 0.1] == "coarse").all()
    asked = {i for name, index, _ in calls if name == "Complete" for i in index}
    assert asked == set(np.flatnonzero(table["clean"] & ~by_pgd & ~(margin > 0.1)))
    stage = found.bracket.stages["pgd-10"]
    assert (stage.tried, stage.broken, stage.seconds, stage.forwards) == (35, by_pgd.sum(), 0, 0)
    made_by = dict(zip(found.witnesses["index"].tolist(), found.witnesses["attack"].tolist(), strict=True))
    assert all(made_by[i] == "pgd-10" for i in np.flatnonzero(by_pgd))


def test_an_attack_under_another_threat_model_decides_nothing(linear):
    found = evaluated(linear, planned(COMPLETE), ["pgd-10:eps=0.2"])
    assert found.bracket.certified_acc == found.bracket.robust_acc == (linear[2] > 0).mean()
    assert "pgd-10:eps=0.2" not in found.bracket.stages


def test_a_stage_with_false_certificates_fails_the_audit(linear):
    far = ThreatModel("Linf", 0.25)
    with pytest.raises(CheckError, match=r"liar certified test example \d+, but bracket-attack breaks it"):
        evaluate_split(context_of(linear, far), {}, bracket=planned(Stage("liar", Liar())))


@dataclass(frozen=True, kw_only=True)
class Inventor(Exact):
    """Says that it broke what it did not."""

    def certify(self, model, batch, threat, *, generator):
        none = torch.zeros(len(batch), dtype=torch.bool)
        return Certificate(torch.zeros(len(batch)), none, broken=~none, witness=batch.x)


def test_a_counterexample_that_is_none_fails_the_run(linear):
    with pytest.raises(CheckError, match="Inventor made a false claim"):
        evaluated(linear, planned(Stage("inventor", Inventor())))


class TestPlan:
    """What a bracket of a model consists of."""

    @pytest.fixture(autouse=True)
    def _three(self, monkeypatch):
        monkeypatch.setattr(module, "ORDER", ("fgsm", "ibp", "bracket-attack", "exact"))
        monkeypatch.setattr(module.registry.certifier, "_built_in", {})
        monkeypatch.setattr(module.registry.certifier, "_plugins", {})

    def plan(self, model=None, norm="Linf", **options):
        model = linear_model(SHAPE, 4) if model is None else model
        return plan_bracket(model, SHAPE, 4, ThreatModel(norm, 0.03), **({"budget": 100} | options))

    def test_stages_in_order_and_those_that_cannot_be_with_a_reason(self):
        module.registry.certifier("ibp")(Exact)
        found = self.plan(norm="L1")
        names = [stage.name for stage in found.stages]
        assert names[:2] == ["ibp", "apgd-ce"]
        assert set(found.skipped) == {"fgsm", "exact"}
        assert found.skipped["fgsm"].startswith("FGSM ")
        assert "L1" in found.skipped["fgsm"]
        assert "unknown certifier 'exact'" in found.skipped["exact"]

    def test_without_any_certifier_there_is_no_bracket(self):
        module.registry.certifier("ibp")(Exact)
        crooked = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softplus(), torch.nn.Linear(25, 4))
        with pytest.raises(UserError, match=r"no bracket \(Exact takes linear models only"):
            self.plan(crooked)
        with pytest.raises(UserError, match="no bracket"):
            self.plan(crooked, known=[Smooth()])
        assert self.plan(crooked, known=[Liar()]).stages

    def test_what_the_run_measures_by_itself_is_no_stage(self):
        module.registry.certifier("ibp")(Exact)
        known = [PlannedAttack(FGSM(), THREAT), Exact()]
        names = [stage.name for stage in self.plan(known=known).stages]
        assert names[0] == "apgd-ce"
        assert "ibp" not in names

    def test_a_search_with_as_many_nodes_is_not_made_again(self):
        module.registry.certifier("ibp")(Searching)
        for nodes, limits_ in ((99, [10, 100]), (100, []), (101, [])):
            stages = self.plan(known=[Searching(nodes=nodes)]).stages
            assert [stage.method.nodes for stage in stages if stage.name == "ibp"] == limits_
        stages = self.plan(known=[Searching(nodes=500, least=0.1)]).stages
        assert [stage.method.nodes for stage in stages if stage.name == "ibp"] == [10, 100]

    def test_a_budget_is_a_count_and_a_time_limit_a_duration(self):
        module.registry.certifier("ibp")(Exact)
        for budget in (0, -1, 60.0, True):
            with pytest.raises(UserError, match="a number of sub-problems for each example, such as 1000, not"):
                self.plan(budget=budget)
        for seconds in (0.0, -1.0, np.inf, np.nan):
            with pytest.raises(UserError, match="time limit of a bracket is"):
                self.plan(time_limit=seconds)
        assert self.plan(time_limit=0.12345).time_limit == 0.123  # of a record's precision

    def test_a_model_in_training_mode_is_planned_for_as_it_is_evaluated(self):
        modes = []

        @dataclass(frozen=True, kw_only=True)
        class Watching(Exact):
            def check_fits(self, model, shape, threat):
                modes.append(model.training)

        module.registry.certifier("ibp")(Watching)
        model = linear_model(SHAPE, 4).train()
        self.plan(model)
        assert modes == [False]
        assert model.training
