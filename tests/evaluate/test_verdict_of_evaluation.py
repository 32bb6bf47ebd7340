"""An evaluation hands its results to the verdict."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from bench.core.attack_specs import PlannedAttack
from bench.core.contracts import Attack
from bench.core.staged_attack import Stage
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.bracket import BracketPlan
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import evaluate_split
from tests.certifying import worst_points
from tests.linear import interior_batch, linear_model

SHAPE, THREAT = (1, 5, 5), ThreatModel("Linf", 0.03)


@dataclass(frozen=True, kw_only=True)
class Weak(Attack):
    """Does nothing, and may warn that it failed."""

    warn: bool = False

    def perturb(self, model, batch, threat, *, generator):
        if self.warn:
            warnings.warn("the loss did not rise", stacklevel=2)
        return batch.x


@dataclass(frozen=True, kw_only=True)
class Best(Attack):
    """The worst point of a linear model."""

    def perturb(self, model, batch, threat, *, generator):
        return worst_points(model, batch, threat)


@pytest.fixture
def context():
    model = linear_model(SHAPE, 4)
    batch = interior_batch(model, SHAPE, 60)
    return EvalContext(model=model, test=Split.of_tensors(batch.x, batch.y), threat=THREAT, batch_size=64, seed=0)


def outcomes(found):
    return {check.name: check.outcome for check in found.sanity.checks}


def test_what_an_attack_warns_of_is_in_the_verdict(context):
    quiet = evaluate_split(context, {"best": PlannedAttack(Best(), THREAT)})
    assert (quiet.sanity.verdict, outcomes(quiet)["attack-warnings"]) == ("no-warnings", "passed")
    warned = evaluate_split(context, {"weak": PlannedAttack(Weak(warn=True), THREAT)})
    assert warned.sanity.verdict == "suspect"
    assert warned.sanity.reasons == ["attack-warnings: weak: the loss did not rise"]


def test_a_bracket_that_breaks_more_than_the_attacks_is_in_the_verdict(context):
    attack = PlannedAttack(Weak(), THREAT)
    plan = BracketPlan([Stage("best", Best())], {}, 60.0)
    found = evaluate_split(context, {"weak": attack}, bracket=plan)
    broken = int(np.sum(found.table["clean"] & (found.table["status"] == "broken")))
    assert broken > 5
    assert found.sanity.verdict == "suspect"
    assert (
        f"the bracket breaks {broken} of {found.table['clean'].sum()} examples that weak left"
        in found.sanity.reasons[0]
    )
