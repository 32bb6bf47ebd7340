"""One step of a defense against the formulas of its paper, written out plainly, in float64."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from bench.testing.contracts import DefenseContract
from defenses.gradalign import input_gradient
from defenses.mart import boosted_cross_entropy
from tests.defenses.exact_step import Step


def test_fgsm_at():
    step = Step("fgsm-at")
    x_adv = step.clip(step.x + step.eps * step.gradient(step.x).sign())
    step.check(cross_entropy(step.model(x_adv), step.y))


def test_n_fgsm():
    step = Step("n-fgsm")
    noisy = (step.x + 2 * step.eps * step.uniform()).clamp(0, 1)
    x_adv = (noisy + step.eps * step.gradient(noisy).sign()).clamp(0, 1)
    assert ((x_adv - step.x).abs() > step.eps * 1.01).any()  # it is not projected onto the ball
    step.check(cross_entropy(step.model(x_adv), step.y))


def test_free():
    step = Step("free", alpha="0.7eps")
    delta = torch.zeros_like(step.x)
    for _ in range(3):  # the same minibatch is replayed
        x_adv = step.clip(step.x + delta)
        gradient = step.gradient(x_adv)
        step.check(cross_entropy(step.model(x_adv), step.y))
        delta = (delta + 0.7 * step.eps * gradient.sign()).clamp(-step.eps, step.eps)
    assert (delta.abs() == step.eps).any()


def test_yopo():
    step = Step("yopo", outer=3, inner=2)
    x_adv, total = step.start(), 0.0
    first, rest = step.model[0], step.model[1:]
    for _ in range(3):
        features = first(x_adv)
        loss = cross_entropy(rest(features), step.y)
        (p,) = torch.autograd.grad(loss, features, retain_graph=True)
        total = total + loss / 3
        for _ in range(2):
            moved = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((p * first(moved)).sum(), moved)
            x_adv = step.clip(x_adv + step.eps / 4 * gradient.sign())
    step.check(total)


def alignment(step, elsewhere):
    def slope(x, create_graph):
        x = x.clone().requires_grad_()
        loss = cross_entropy(step.model(x), step.y, reduction="sum")
        return torch.autograd.grad(loss, x, create_graph=create_graph)[0].flatten(1)

    return cosine_similarity(slope(step.x, False).detach(), slope(elsewhere, True), dim=1).mean()


def test_gradalign():
    step = Step("gradalign", penalty=0.4)
    x_adv = step.clip(step.x + 1.25 * step.eps * step.gradient(step.x).sign())
    elsewhere = step.start()
    step.check(cross_entropy(step.model(x_adv), step.y) + 0.4 * (1 - alignment(step, elsewhere)))


def test_the_double_backward_of_gradalign_is_that_of_finite_differences():
    step = Step("gradalign")
    weight, elsewhere = step.model[0].weight, step.start()
    fixed = input_gradient(step.model, step.x, step.y).flatten(1)

    def penalty():
        turned = input_gradient(step.model, elsewhere, step.y, differentiable=True).flatten(1)
        return 1 - cosine_similarity(fixed, turned, dim=1).mean()

    (gradient,) = torch.autograd.grad(penalty(), weight)
    towards = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, size = [], 1e-6
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * size * towards)
        values.append(penalty().detach())
        with torch.no_grad():
            weight.sub_(sign * size * towards)
    assert (gradient * towards).sum() == pytest.approx(float(values[0] - values[1]) / (2 * size), rel=1e-4)


def test_mart():
    step = Step("mart", steps=2, beta=3.0)
    noise = torch.randn(step.x.shape, generator=step.generator)
    x_adv = step.clip(step.x + 0.001 * noise)
    for _ in range(2):
        x_adv = step.clip(x_adv + step.eps / 4 * step.gradient(x_adv, training=False).sign())
    p, q = step.model(step.x).softmax(dim=1), step.model(x_adv).softmax(dim=1)
    own = torch.arange(len(step.y)), step.y
    others = q.masked_fill(torch.nn.functional.one_hot(step.y, 10).bool(), 0).amax(dim=1)
    boosted = -q[own].log() - (1 - others).log()
    divergence = (p * (p / q).log()).sum(dim=1)
    step.check((boosted + 3.0 * divergence * (1 - p[own])).mean())


def test_the_boosted_cross_entropy_of_a_certain_prediction_is_finite():
    logits = torch.tensor([[100.0, 0.0, 0.0], [0.0, 100.0, 0.0]], requires_grad=True)
    loss = boosted_cross_entropy(logits, torch.tensor([0, 0]))
    assert loss.tolist() == pytest.approx([0.0, 200.0 - math.log(2)], rel=1e-4, abs=1e-6)
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_the_weight_average_is_what_pgd_at_wa_evaluates():
    loop = DefenseContract().loop("pgd-at-wa", steps=1)
    predictor, _ = loop.run()
    assert predictor is loop.averaged
    assert not torch.equal(predictor[0].weight, loop.model[0].weight)
