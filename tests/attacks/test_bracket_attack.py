import numpy as np
import pytest
import torch
from torch import nn

from attacks.bracket_attack import BracketAttack
from attacks.losses import margin
from bench.core import seeds
from bench.core.attack_specs import PlannedAttack
from bench.core.contracts import Batch
from bench.core.passes import AttackPasses, count_passes
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.attacked import measure_attack
from bench.evaluate.context import EvalContext
from bench.testing.contracts import tiny_batch, tiny_model
from tests.linear import eps_that_breaks_half, exact_margin, interior_batch, linear_model, near_the_boundary

CPU = torch.device("cpu")
SHAPE = (1, 5, 5)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("norm", ["Linf", "L2", pytest.param("L1", marks=pytest.mark.slow)])
def test_breaks_exactly_the_examples_of_negative_margin(norm, classes):
    model = linear_model(SHAPE, classes)
    batch = near_the_boundary(model, SHAPE)
    threat = ThreatModel(norm, eps_that_breaks_half(model, batch, norm))
    exact, gaps = (exact_margin(model, batch, ThreatModel(norm, eps)) for eps in (threat.eps, 1e-9))
    clear = exact.abs() > 0.01 * gaps
    assert 5 <= (exact < 0).sum() <= 15
    x_adv = BracketAttack()(model, batch, threat, generator=seeds.generator(CPU, 0))
    with torch.no_grad():
        found = margin(model(x_adv), batch.y)
    assert torch.equal((found < 0)[clear], (exact < 0)[clear])


def measured(model, batch, threat):
    """The result of the attack by the evaluator's scheduler."""
    test, clean = Split.of_tensors(batch.x, batch.y), np.ones(len(batch), dtype=bool)
    context = EvalContext(model=model, test=test, threat=threat, batch_size=len(batch), seed=0)
    return measure_attack(context, "bracket-attack", PlannedAttack(BracketAttack(), threat), clean).result


class Quantised(nn.Module):
    """A sound model behind rounded pixels: no gradient says anything."""

    def __init__(self):
        super().__init__()
        self.model = tiny_model()

    def forward(self, x):
        return self.model((x * 8).round() / 8)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_the_long_square_attack_runs_if_gradients_are_uninformative(whole):
    """By the scheduler, and within one batch."""
    model, batch, threat = Quantised().eval(), tiny_batch(12), ThreatModel("Linf", 0.15)
    attack = BracketAttack()
    if whole:
        assert measured(model, batch, threat).stages["square-long"].attacked > 0
        return
    with count_passes(model, AttackPasses(batch.x, batch.y, threat)) as seen:
        attack(model, batch, threat, generator=seeds.generator(CPU, 0))
    assert (seen.total() > 5000).any()


def test_the_long_square_attack_is_skipped_for_a_linear_model():
    model = linear_model(SHAPE, 4)
    batch = interior_batch(model, SHAPE, 30)
    stages = measured(model, batch, ThreatModel("Linf", 0.03)).stages
    assert "square" in stages
    assert "square-long" not in stages
    # the restarts are for the nearest examples only
    assert stages["malt-nearest"].attacked == -(-stages["malt-near"].attacked * 4 // 10)


def test_each_example_has_its_own_eps():
    model = linear_model(SHAPE, 4)
    batch = interior_batch(model, SHAPE, 6)
    batch = Batch(batch.x[:1].repeat(6, 1, 1, 1), batch.y[:1].repeat(6), torch.arange(6))
    threat = ThreatModel("Linf", torch.tensor([1e-4, 0.3, 1e-4, 0.3, 1e-4, 0.3]))
    x_adv = BracketAttack()(model, batch, threat, generator=seeds.generator(CPU, 0))
    with torch.no_grad():
        assert (margin(model(x_adv), batch.y) < 0).tolist() == [False, True] * 3
