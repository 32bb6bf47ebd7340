import pytest
import torch

from attacks.cw import CW
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.passes import Passes, count_passes
from bench.core.threat import ThreatModel
from tests.attacks.test_minimum_norm_search import Trap, grey
from tests.linear import linear_model

CPU = torch.device("cpu")


def test_it_needs_a_box_for_its_tanh_space():
    threat = ThreatModel("L2", 0.1, box=None)
    with pytest.raises(UserError, match="box"):
        CW().check_fits(threat, (1, 1, 2), 3)
    with pytest.raises(UserError, match="box"):
        CW(search_steps=1)(Trap(), grey(), threat, generator=seeds.generator(CPU, 0))


@pytest.mark.parametrize("option", [{"search_steps": 0}, {"initial_c": 0.0}, {"lr": 0.0}, {"shrink": 1.0}])
def test_invalid_options_are_refused(option):
    with pytest.raises(UserError, match="search_steps"):
        CW(**option)


@pytest.mark.slow
def test_converged_examples_cost_no_more_passes():
    model, attack = Trap(), CW(steps=1000)
    with count_passes(model, Passes()) as passes:
        attack(model, grey(4), ThreatModel("L2", 0.1), generator=seeds.generator(CPU, 0))
    assert passes.forwards < 4 * 9 * 500


@pytest.mark.slow
def test_linf_in_many_dimensions():
    """Three images of 3,072 pixels: batches of one, two and three round differently, and no point may depend on it."""
    shape = (3, 32, 32)
    model = linear_model(shape, 2)
    weight = model[1].weight
    with torch.no_grad():
        model[1].bias.copy_(-0.5 * weight.sum(dim=1))  # grey images tie
        x = 0.4 + 0.2 * torch.rand((3, *shape), generator=torch.Generator().manual_seed(0))
        batch = Batch(x, model(x).argmax(dim=1), torch.arange(3))
        gap = (model(x)[:, 0] - model(x)[:, 1]).abs().double()
    exact = gap / (weight[0] - weight[1]).detach().abs().sum()
    attack = CW(steps=400)
    x_adv = attack(model, batch, ThreatModel("Linf", 0.1), generator=seeds.generator(CPU, 0))
    assert (model(x_adv).argmax(dim=1) != batch.y).all()
    assert (ThreatModel("Linf", 0.1).distance(x_adv, x) <= 1.01 * exact).all()
