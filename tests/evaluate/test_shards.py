"""An evaluation that several processes divide gives what one process gives, bit for bit."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.core import registry
from bench.core.attack_specs import PlannedAttack
from bench.core.records import Sanity
from bench.core.staged_attack import Stage, StagedAttack
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate import cascade
from bench.evaluate.bracket import BracketPlan
from bench.evaluate.context import EvalContext, Shard
from bench.evaluate.evaluation import evaluate_shard, evaluate_split
from bench.evaluate.partial_results import PartialResults

SHAPE, THREAT = (1, 5, 5), ThreatModel("Linf", 0.04)
PGD, NOISE = registry.attack.get("pgd"), registry.attack.get("random-noise")
IBP, CROWN = registry.certifier.get("ibp"), registry.certifier.get("crown")


@dataclass(frozen=True, kw_only=True)
class InStages(StagedAttack):
    """Noise, then one step, then several steps on what is left."""

    def stages(self, threat, classes):
        return [Stage("noise", NOISE(samples=2)), Stage("one", PGD(steps=1), share=0.5), Stage("more", PGD(steps=3))]

    def perturb(self, model, batch, threat, *, generator):
        raise AssertionError("the scheduler runs the stages itself")


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The context, attacks, certifiers and bracket of an evaluation in batches of 3, without the checks at its end."""
    monkeypatch.setattr("bench.evaluate.evaluation.audit_certificates", lambda *_: 0)
    monkeypatch.setattr("bench.evaluate.evaluation.form_verdict", lambda *_, **__: Sanity("no-warnings", []))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 20), nn.ReLU(), nn.Linear(20, 4, bias=False)).eval()
    x = torch.rand(15, *SHAPE)
    context = EvalContext(
        model=model, test=Split.of_tensors(x, model(x).argmax(dim=1)), threat=THREAT, batch_size=3, seed=1,
        partial_results=PartialResults(tmp_path, "it"),
    )  # fmt: skip
    attacks = {"noise": PlannedAttack(NOISE(), THREAT), "staged": PlannedAttack(InStages(), THREAT)}
    bracket = BracketPlan([Stage("crown", CROWN()), Stage("pgd", PGD(steps=20))], {}, 1)
    return context, attacks, {"certifiers": {"ibp": IBP()}, "bracket": bracket}


def rounds(context, attacks, rest, of, order=1):
    """Rounds of all shards, one after the other, until nothing is missing; how many there were."""
    shards = [replace(context, shard=Shard(k, of)) for k in range(of)][::order]
    for done in range(1, 100):
        missing = [each for each in shards if not evaluate_shard(each, attacks, **rest)]
        if not missing:
            return done
    raise AssertionError("the shards never end")


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("order", [1, -1])
def test_eight_shards_give_what_one_process_gives(parts, tmp_path, order, monkeypatch):
    context, attacks, rest = parts
    alone = evaluate_split(replace(context, partial_results=None), attacks, **rest)
    assert {"ibp", "crown"} < {*alone.table["decided_by"]}
    assert len(alone.witnesses["index"])
    assert rounds(context, attacks, rest, 8, order) > 1  # later stages wait for earlier ones of all shards
    assert len(list(tmp_path.iterdir())) > 10
    monkeypatch.setattr(cascade, "run_attack", None)  # all batches are stored
    monkeypatch.setattr(cascade, "run_certifier", None)
    together = evaluate_split(context, attacks, **rest)
    assert same(alone.table, together.table)
    assert same(alone.witnesses, together.witnesses)
    assert alone.proofs == together.proofs


def test_each_batch_is_computed_by_one_shard(parts, monkeypatch):
    context, attacks, rest = parts
    made = []

    def counted(run):
        def counting(own, method, batch, generator, **named):
            made.append((own.shard.number, repr(method), *batch.index.tolist(), generator.initial_seed()))
            return run(own, method, batch, generator, **named)

        return counting

    for name in ("run_attack", "run_certifier"):
        monkeypatch.setattr(cascade, name, counted(getattr(cascade, name)))
    rounds(context, attacks, rest, 3)
    assert {number for number, *_ in made} == {0, 1, 2}
    batches = [tuple(batch) for _, *batch in made]
    assert len(set(batches)) == len(batches) > 10


def test_the_bracket_waits_for_all_that_comes_before_it(parts, tmp_path):
    context, attacks, rest = parts
    shard = replace(context, shard=Shard(0, 2))
    for _ in range(5):
        assert not evaluate_shard(shard, attacks, **rest)
    stored = len(list(tmp_path.iterdir()))
    assert 0 < stored < 10  # its own batches of the first stages only, however often it is called
    assert not evaluate_shard(shard, attacks, **rest)
    assert len(list(tmp_path.iterdir())) == stored


def test_single_batches_of_many_stages_are_divided_too():
    owners = {next(k for k in range(4) if Shard(k, 4).has(f"attack-{n}/", 0)) for n in range(30)}
    assert owners == {0, 1, 2, 3}
