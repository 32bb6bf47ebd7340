"""The inequalities of reflected-loss.txt, and that a planted error breaks each of them."""

import json
import math

import numpy as np
import pytest
import torch

from bench.core.errors import UserError
from bench.studies.reflected_loss.reflected_convergence import (
    ReflectedConvergenceStudy,
    Setting,
    attack,
    robust_error,
    train,
)
from bench.studies.reflected_loss.reflected_networks import (
    ROUNDING,
    Instances,
    Networks,
    lowest_margins,
    norm_growth,
    random_instances,
    slack,
)


@pytest.fixture(scope="module")
def instances():
    return random_instances(200, seed=3)


def test_instances_are_those_of_the_theorem(instances):
    nets, y = instances.networks, 2 * instances.y - 1
    f = nets(instances.x)[:, 1] - nets(instances.x)[:, 0]
    assert (y * f > 0).all()
    assert (instances.best / nets.norm <= -2 * instances.nu * (1 - nets.slope)).all()
    hidden = torch.einsum("nmd,nd->nm", nets.weight, instances.x)
    expected = (nets.top * torch.where(hidden > 0, hidden, nets.slope[:, None] * hidden)).sum(dim=1)
    assert torch.allclose(f, expected)
    used = nets.top.abs() > 0
    assert torch.allclose((nets.top**2).sum(dim=1), torch.ones(200, dtype=torch.float64))
    assert torch.allclose(nets.top.abs().amax(dim=1), used.sum(dim=1).double() ** -0.5)


@pytest.mark.parametrize("normalised", [False, True])
def test_theorem_3_2_holds_on_each_instance(instances, normalised):
    assert slack(instances, normalised=normalised).min() >= -ROUNDING


@pytest.mark.parametrize("planted", [{"factor": 1000.0}, {"sign": -1.0}])
def test_a_step_above_the_bound_and_a_wrong_sign_break_theorem_3_2(instances, planted):
    assert (slack(instances, **planted) < -ROUNDING).any(axis=0).mean() > 0.2


def test_equation_6_holds_and_a_step_above_the_bound_breaks_it():
    assert norm_growth(300, seed=1).max() <= ROUNDING
    assert (norm_growth(300, seed=1, factor=30.0) > ROUNDING).double().mean() > 0.5


def linear_networks(n=2):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, 3, 4, generator=generator, dtype=torch.float64)
    return Networks(weight, torch.tensor([[0.5, -0.5, 0.5]] * n).double(), torch.ones(n).double())


def test_the_robust_error_of_a_linear_network_is_exact():
    nets, setting = linear_networks(), Setting(1.0, 0.7, 0.1)
    x = torch.randn(2, 400, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(800).reshape(2, 400) % 2
    by_attack = []
    for k in range(2):
        each = Instances(
            Networks(*(part[k : k + 1].expand(400, *part.shape[1:]) for part in (nets.weight, nets.top, nets.slope))),
            x[k], y[k], torch.full((400,), 0.7).double(), torch.zeros(400),
        )  # fmt: skip
        by_attack.append(float((lowest_margins(each, each.nu / 2, 10) < 0).double().mean()))
    assert robust_error(nets, x, y, setting) == pytest.approx(by_attack)
    assert 0.5 < by_attack[0] < 1


def test_algorithm_1_finds_the_best_attack_on_a_linear_network():
    nets, setting = linear_networks(), Setting(1.0, 0.3, 1e-3)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    points = attack(nets, x, torch.tensor([1, 1]), setting)
    slope = torch.einsum("nm,nmd->nd", nets.top, nets.weight)
    best = x - 0.3 * slope / slope.norm(dim=1, keepdim=True)
    assert torch.allclose(points, best, atol=1e-4)


def test_the_bounds_are_those_of_the_corollaries():
    linear = Setting(1.0, 0.1, 0.1)
    assert linear.bound(omega=1.0) == pytest.approx(64 * 1.1**2 * 1.03 / (0.2 * 0.1) ** 2)
    scaled = Setting(0.5, 0.1, 0.1, beta=0.02)
    assert scaled.top == pytest.approx(0.02 / (2 * 0.1 * 0.5))
    expected = 64 * 1.1**2 * (1 + 0.3 * 0.5 * 0.02 * 0.1 / (2 * 0.1 * 0.5)) / (0.2 * 0.5 * 0.1) ** 2
    assert scaled.bound(omega=1.0) == pytest.approx(expected)


def test_a_training_reaches_the_error_and_counts_its_iterations():
    result = train(Setting(1.0, 0.05, 0.1), n_seeds=2, seed=0, omega=1.0)
    assert np.isfinite(result.hits).all()
    assert 1 < result.hits.min() <= result.expected + 1 < 100
    assert result.growth <= 0
    assert math.isfinite(result.expected)


@pytest.mark.slow
def test_the_study_ends_with_claims(tmp_path):
    pytest.importorskip("matplotlib")
    study = ReflectedConvergenceStudy(instances=100, figure=str(tmp_path / "a.svg"), json=True)
    result = json.loads(study.run())
    verdicts = [claim["verdict"] for claim in result["claims"]]
    assert verdicts == ["holds"] * 8 + ["does not hold"]  # ln: the cross entropy is below 1 for margins just below 0
    assert "iterations T of PGD" in (tmp_path / "a.svg").read_text()
    with pytest.raises(UserError, match="seed"):
        ReflectedConvergenceStudy(seed=-1).run()
