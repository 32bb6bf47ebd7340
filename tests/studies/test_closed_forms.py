"""The formulas against brute force and against automatic differentiation, and planted errors that tests must find."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from bench.studies.adversarial_training import closed_forms
from bench.studies.adversarial_training import logistic_forms as logistic
from bench.studies.adversarial_training import mixture_forms as mixtures
from bench.studies.adversarial_training.scattered_gradients import (
    change_over_bound,
    derived_bound,
    descend,
    gradients,
    printed_bound,
)


def test_curvatures_are_second_derivatives():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(7, 4)), rng.choice([-1.0, 1.0], size=7), rng.normal(size=4)
    points, labels = torch.from_numpy(x), torch.from_numpy(y)

    def constant_norm(v):
        return softplus(-labels * (points @ v) + 0.3).mean()

    def with_norm(v):
        return softplus(-labels * (points @ v) + 0.3 * v.norm()).mean()

    for ours, loss in ((logistic.curvature, constant_norm), (logistic.curvature_with_norm, with_norm)):
        hessian = torch.autograd.functional.hessian(loss, torch.from_numpy(w))
        assert np.allclose(ours(x, y, w, 0.3), hessian.numpy(), atol=1e-12)


def test_a_separable_problem_has_the_margin_that_it_says():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y, w, eps = logistic.separable(rng)
        assert (y * (x @ w)).min() == pytest.approx(eps)
        assert min(abs(np.linalg.norm(w, ord=q) - 1) for q in (1, 2, np.inf)) < 1e-12


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_linear_classifiers_collapse_at_the_closed_form(classes):
    rng = np.random.default_rng(classes)
    for _ in range(5):
        y = rng.permutation(np.concatenate([np.arange(classes), rng.integers(classes, size=8)]))
        x = rng.normal(size=(len(y), 2)) + rng.normal(size=(classes, 2))[y]
        bar = logistic.collapse_eps(x, y, classes)
        below, above = (logistic.least_loss(x, y, classes, f * bar, rng)[0] for f in (0.99, 1.01))
        assert not logistic.collapses(below, classes)
        assert logistic.collapses(above, classes)
        if classes == 2:
            bar = logistic.collapse_eps_l2(x, y)
            below, above = (logistic.least_loss_l2(x, y, f * bar, rng)[0] for f in (0.99, 1.01))
            assert not logistic.collapses(below, 2)
            assert logistic.collapses(above, 2)


def test_the_eps_of_collapse_of_one_point_is_its_norm_and_of_equal_classes_half_their_distance():
    one = np.array([[0.3, -0.7]])
    assert logistic.collapse_eps_l2(one, np.array([1])) == pytest.approx(np.linalg.norm(one))
    x, y = np.array([[0.0, 1.0], [0.4, 0.2], [-0.1, 0.0]]), np.array([0, 1, 2])
    assert logistic.collapse_eps(x, y, 3) == pytest.approx(0.5)


def test_max_margin_vectors_fulfil_their_conditions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 8))
    w = logistic.max_margin(x)
    margins = x @ w
    assert margins.min() == pytest.approx(1)
    support = x[np.isclose(margins, 1)]
    multipliers = np.linalg.lstsq(support.T, w, rcond=None)[0]  # w is a positive combination of the support
    assert np.allclose(support.T @ multipliers, w)
    assert (multipliers > -1e-9).all()
    eps = 0.5 / np.linalg.norm(w)
    robust = logistic.adversarial_max_margin(x, eps)
    assert (x @ robust - eps * np.linalg.norm(robust)).min() == pytest.approx(1, abs=1e-6)
    assert logistic.cosine(robust, w) == pytest.approx(1)


def test_gradient_descent_follows_the_adversarial_loss():
    rng = np.random.default_rng(1)
    x, eps = rng.normal(size=(2, 4, 6)), np.array([0.1, 0.2])
    (w,) = logistic.directions(x, eps, (1,))
    for k in range(2):
        v = torch.full((6,), 1e-3, dtype=torch.float64, requires_grad=True)
        softplus(-(torch.from_numpy(x[k]) @ v) + eps[k] * v.norm()).sum().backward()
        step = np.linalg.norm(x[k], ord=2) ** -2
        assert np.allclose(w[k], v.detach().numpy() - step * v.grad.numpy(), atol=1e-12)


def test_eq_4_50_is_the_cosine_and_eq_4_38_the_error_of_a_simulation():
    rng = np.random.default_rng(0)
    off = []
    for _ in range(20):
        mixture = mixtures.random_mixture(rng)
        w = mixtures.interpolation(mixture.training_points(mixture.r[0]), mixture.y)
        cosine = float(logistic.cosine(w, mixture.eta))
        assert mixtures.alignment(mixture, mixture.r[0]) == pytest.approx(abs(cosine), abs=1e-10)
        formula = mixtures.robust_error(mixture, cosine, 0.5)
        off.append(mixtures.simulated_error(mixture, w, 0.5, 2000, rng) - formula)
    assert abs(np.mean(off)) < 4 * 0.5 / math.sqrt(20 * 2000)
    wide = mixtures.random_mixture(rng, wide=True)
    assert mixtures.interpolates(wide, wide.r[0])


def test_gradients_of_the_one_dimensional_network():
    rng = np.random.default_rng(0)
    theta, x, y = rng.normal(size=(3, 8)), rng.normal(size=5), rng.choice([-1.0, 1.0], size=5)
    weights = torch.from_numpy(theta).requires_grad_()
    points = torch.from_numpy(x)
    hidden = torch.tanh(weights[1] * points[:, None] + weights[2])
    margins = torch.from_numpy(y) * (hidden @ weights[0])
    ours = gradients(theta[:, None], hidden.detach().numpy(), x, margins.detach().numpy(), y)
    softplus(-margins).sum().backward()
    assert np.allclose(ours.sum(axis=1), weights.grad.numpy(), atol=1e-12)


def test_the_derived_bound_is_what_markovs_argument_gives():
    """At the bound P, -2 (1 - P) + (gamma^2 / 2 - 2 gamma) P = 0 (Eq. 4.24); the printed one is smaller."""
    for gamma in (4.5, 6.0, 10.0):
        p = derived_bound(gamma)
        assert -2 * (1 - p) + (gamma**2 / 2 - 2 * gamma) * p == pytest.approx(0)
        assert printed_bound(gamma) < p
    descent = descend(0.2, nets=2, steps=120, rng=np.random.default_rng(0))
    assert descent.gradients.shape == (2, 120)
    assert (descent.slope > 0).all()
    assert (descent.share_above(0.0) == 1).all()


def test_gradients_change_within_proposition_4_2_and_not_without_its_second_term():
    rng = np.random.default_rng(0)
    ratios = np.array([change_over_bound(rng) for _ in range(300)])
    assert ratios[:, 0].max() <= 1
    assert ratios[:, 1].max() > 10


@pytest.mark.slow
def test_the_study_reports_every_statement(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    tiny = closed_forms.Plan(settings=40, points=1000, descent=(10, 1000), nets=2, steps=200, epochs=3)
    monkeypatch.setattr(closed_forms, "SMALL", tiny)
    result = json.loads(closed_forms.ClosedFormsStudy(json=True, figure=str(tmp_path / "a.svg")).run())
    verdicts = {claim["claim"].partition(":")[0]: claim["verdict"] for claim in result["claims"]}
    assert {"Theorem 4.1", "Theorem 4.2", "Theorem 4.3", "Theorem 4.4", "Theorem 4.5", "Lemma 4.2"} <= set(verdicts)
    assert {claim for claim, verdict in verdicts.items() if verdict != "holds"} <= {"Eq. 5.27"}
    assert "Figure 4.2" in (tmp_path / "a.svg").read_text()


def test_a_planted_error_in_eps_bar_is_found(monkeypatch):
    right = logistic.collapse_eps
    monkeypatch.setattr(logistic, "collapse_eps", lambda *args: 1.1 * right(*args))
    study, found = closed_forms.ClosedFormsStudy(), closed_forms.Findings()
    study.collapse(closed_forms.Plan(settings=16), found)
    (claim,) = found.claims
    assert claim.verdict == "does not hold"
