"""Caps of the sphere, bounds of the robust loss and kernels in closed form; projected training."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.studies.claims import network
from bench.studies.convergence import convergence
from bench.studies.convergence.sphere_training import (
    SphereCap,
    attacked,
    kernel_fit_error,
    relu_kernel,
    robust_error,
    robust_loss,
    sphere_data,
    tangent_kernel,
    train,
)

DATA = sphere_data(8, 4, 0.2, 0)
GENERATOR = torch.Generator().manual_seed(0)


class Linear(nn.Module):
    """f(x) = slope^T x as two logits."""

    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(slope)

    def forward(self, x):
        f = x @ self.slope
        return torch.stack([-f / 2, f / 2], dim=1)


def test_the_cap_is_the_ball_on_the_sphere():
    x = torch.nn.functional.normalize(torch.randn(200, 4, generator=GENERATOR).double(), dim=1)
    z = torch.randn(200, 4, generator=GENERATOR).double()
    point = SphereCap("L2", 0.3, None).projector(x)(z)
    assert torch.allclose(point.norm(dim=1), torch.ones(200).double())
    assert (point - x).norm(dim=1).max() <= 0.3 + 1e-9
    inside = (torch.nn.functional.normalize(z, dim=1) - x).norm(dim=1) < 0.3
    assert torch.allclose(point[inside], torch.nn.functional.normalize(z[inside], dim=1))
    assert torch.allclose((point[~inside] - x[~inside]).norm(dim=1), torch.tensor(0.3).double())
    for _ in range(20):  # no sampled point of the cap is nearer
        other = SphereCap("L2", 0.3, None).projector(x)(x + 0.2 * torch.randn(200, 4, generator=GENERATOR))
        assert ((other - z).norm(dim=1) >= (point - z).norm(dim=1) - 1e-9).all()


def test_the_attack_finds_the_worst_point_of_a_linear_network():
    """The least <slope, x'> in the cap is at the angle to the slope that is the cap's angle larger."""
    slope = torch.tensor([1.0, -2.0, 0.5, 1.0]).double()
    model, cap_angle = Linear(slope), 2 * math.asin(0.1)
    x_adv = attacked(model, DATA, steps=60)
    sign = 2.0 * DATA.y - 1
    found = sign * (x_adv @ slope).detach()
    angle = (sign * (DATA.x @ slope) / slope.norm()).arccos() + cap_angle
    assert torch.allclose(found, slope.norm() * angle.clamp(max=math.pi).cos(), atol=1e-3)


@pytest.mark.parametrize("spec", ["two-layer:width=12:activation=softplus:mirrored=true", "deep-ntk:width=12"])
def test_the_robust_loss_is_bracketed(spec):
    model = network(spec, 4, 0, "test")
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1.5)
    below, above = robust_loss(model, DATA, 0)
    project, worst = DATA.cap.projector(DATA.x), torch.zeros(8).double()
    y = 2.0 * DATA.y - 1
    for _ in range(200):
        z = project(DATA.x + 0.2 * torch.randn(8, 4, generator=GENERATOR))
        with torch.no_grad():
            logits = model(z)
        worst = torch.maximum(worst, torch.log1p((-y * (logits[:, 1] - logits[:, 0])).exp()))
    assert worst.mean() <= below + 1e-6 <= above + 2e-6


def test_training_stays_in_the_balls_and_without_them_goes_further():
    runs = {
        radius: train(network("deep-ntk:width=16", 4, 0, "test"), DATA, lr=0.1, steps=10, radius=radius, attack_steps=2)
        for radius in (0.05, math.inf)
    }
    assert runs[0.05].moved <= 0.05 + 1e-9 < runs[math.inf].moved
    assert len(runs[0.05].surrogate) == 11
    assert runs[math.inf].least < runs[0.05].least < runs[0.05].surrogate[0]


def test_a_step_is_gradient_descent_on_the_loss_at_the_attack_s_points():
    slope = torch.tensor([0.3, 0.1, -0.2, 0.4]).double()
    model = Linear(slope.clone())
    x_adv, y = attacked(model, DATA, steps=3), 2.0 * DATA.y - 1
    expected = (torch.sigmoid(-y * (x_adv @ slope)) * -y) @ x_adv / 8
    train(model, DATA, lr=0.5, steps=1, radius=math.inf, attack_steps=3)
    assert torch.allclose(model.slope.detach(), slope - 0.5 * expected)


def test_the_kernel_is_that_of_the_network_s_gradient_and_of_the_closed_form():
    model, m = network("two-layer:width=400:mirrored=true", 4, 0, "test"), 400
    weight = model.stem.weight

    def gradient(point):
        logits = model(point[None])[0]
        return torch.autograd.grad(logits[1] - logits[0], weight)[0].flatten()

    rows = torch.stack([gradient(point) for point in DATA.x])
    step = lambda z: (z > 0).to(z.dtype)  # noqa: E731
    kernel = tangent_kernel(weight.detach(), DATA.x, DATA.x, step)
    assert torch.allclose(rows @ rows.T, kernel)
    many = torch.randn(50 * m, 4, generator=GENERATOR).double()
    assert torch.allclose(tangent_kernel(many, DATA.x, DATA.x, step), relu_kernel(DATA.x, DATA.x), atol=0.02)


def test_the_fit_interpolates_and_perturbations_in_it_help():
    at_points = kernel_fit_error(DATA, (0,), tests=0, seed=0)
    assert at_points[0] < 1e-4
    none, many = kernel_fit_error(DATA, (0, 16), tests=30, seed=0)
    assert many < none


def test_errors_are_exact_on_a_separating_line():
    data = sphere_data(6, 2, 0.05, 1)
    model = network("two-layer:width=2", 2, 0, "test")
    with torch.no_grad():
        model.stem.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        model.output.weight.copy_(torch.tensor([[-0.5, 0.5], [0.5, -0.5]]))  # f = x_1
    wrong = ((2 * data.y - 1) * data.x[:, 0] <= 0).double().mean()
    assert robust_error(model, data, 0, clean=True) == pytest.approx(float(wrong))
    angle = torch.atan2(data.x[:, 1], data.x[:, 0])
    cap = 2 * math.asin(0.025)
    worst = torch.minimum((2 * data.y - 1) * (angle + cap).cos(), (2 * data.y - 1) * (angle - cap).cos())
    assert robust_error(model, data, 0) == pytest.approx(float((worst <= 0).double().mean()))


@pytest.mark.slow
def test_the_study_reports_every_claim(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    tiny = convergence.Plan(
        n=6, dim=4, seeds=2, steps=3, attack_steps=1, widths=(4, 8), depths=(1, 2), middle=8, radii=(0.5, 2.0),
        fewest=(1, 16), interpolation=3, interpolated=4, interpolation_seeds=2,
    )  # fmt: skip
    monkeypatch.setattr(convergence, "SMALL", tiny)
    study = convergence.ConvergenceStudy(figure=str(tmp_path / "a.svg"), json=True)
    result = json.loads(study.run())
    claims = {claim["claim"]: claim["verdict"] for claim in result["claims"]}
    assert all(verdict == "holds" for claim, verdict in claims.items() if claim.startswith("Definition 3.4"))
    assert len([claim for claim in claims if claim.startswith("Definition 3.4")]) == 2
    assert len(result["tables"]) == 7
    assert "with projection onto B(R)" in (tmp_path / "a.svg").read_text()


def test_bounds_that_are_too_low_are_reported(monkeypatch):
    monkeypatch.setattr(convergence, "robust_loss", lambda *_: (1.0, 0.1))
    found = convergence.Findings()
    tiny = convergence.Plan(n=6, dim=4, seeds=2, steps=1, attack_steps=1, widths=(4, 8))
    convergence.ConvergenceStudy().widths(tiny, "deep", found)
    assert found.claims[-1].verdict == "does not hold"
    assert np.isfinite([row[1] for row in found.tables[0].rows]).all()
