"""One step of the methods that the first version had, against plain formulas, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

from attacks.losses import reflected
from bench.training.subnet import linear_layers, masks
from tests.defenses.exact_step import Step


def carried(step):
    """The start of the attack: the bank's first perturbations, on the place of the batch's crop."""
    return step.clip(step.x + step.batch.read(step.loop.bank["delta"]))


def own_gradients(step, x):
    """The gradient of each example's own loss, in eval mode."""
    return step.gradient(x, training=False, loss=lambda x: cross_entropy(step.model(x), step.y, reduction="sum"))


def test_standard():
    step = Step("standard")
    step.check(cross_entropy(step.model(step.x), step.y))


def test_pgd_at():
    step = Step("pgd-at", steps=3)
    step.check(cross_entropy(step.model(step.pgd(step.start(), steps=3)), step.y))


def test_fgsm_rs():
    step = Step("fgsm-rs")
    start = step.start()
    x_adv = step.clip(start + 1.25 * step.eps * step.gradient(start).sign())
    step.check(cross_entropy(step.model(x_adv), step.y))


def test_trades():
    step = Step("trades", steps=2, alpha="0.25eps", beta=3.0)
    p = step.in_eval_mode(step.x).softmax(dim=1)
    x_adv = step.pgd(step.noisy(), steps=2, loss=lambda x: -(p * step.model(x).log_softmax(dim=1)).sum())
    logits = step.model(step.x)
    p = logits.softmax(dim=1)
    divergence = (p * (p.log() - step.model(x_adv).log_softmax(dim=1))).sum(dim=1).mean()
    step.check(cross_entropy(logits, step.y) + 3.0 * divergence)


def reflected_loss(logits, y):
    """Of each example: the log-likelihood of the most likely wrong class, by section 4.3 of the paper."""
    log_p = logits.log_softmax(dim=1)
    wrong = log_p.clone()
    wrong[torch.arange(len(y)), y] = -torch.inf
    return log_p.gather(1, wrong.argmax(dim=1, keepdim=True)).squeeze(1)


def test_r_pgd():
    step = Step("r-pgd", steps=3, alpha="0.5eps")
    x_adv, best, highest = step.x, step.x, torch.full_like(step.x[:, 0, 0, 0], -torch.inf)
    for number in range(4):
        heights = reflected_loss(step.in_eval_mode(x_adv), step.y)
        best = torch.where((heights > highest)[:, None, None, None], x_adv, best)
        highest = torch.maximum(heights, highest)
        if number < 3:
            slope = step.gradient(x_adv, training=False, loss=lambda x: reflected_loss(step.model(x), step.y).sum())
            x_adv = step.clip(x_adv + 0.5 * step.eps * slope.sign())
    step.check(cross_entropy(step.model(best), step.y))


def test_the_reflected_loss_of_two_classes_is_that_of_the_paper():
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)  # the margin of class 0: l_-(z) = -log(1 + e^z)
    logits = torch.stack([z / 2, -z / 2], dim=1)
    assert torch.allclose(reflected(logits, torch.zeros(9, dtype=torch.int64)), -softplus(z))


def test_atta():
    step = Step("atta")
    start = carried(step)
    x_adv = step.clip(start + step.eps / 2 * step.gradient(start, training=False).sign())
    step.check(cross_entropy(step.model(x_adv), step.y))
    assert torch.allclose(step.batch.read(step.loop.bank["delta"]), x_adv - step.x)


@pytest.mark.parametrize("warm_up", [0.0, 0.5])
def test_atas(warm_up):
    step = Step("atas", warm_up=warm_up, c=0.0015)
    step.loop.bank["v"].fill_(2e-4)
    start = carried(step)
    gradient = own_gradients(step, start)
    v = 0.5 * 2e-4 + 0.5 * (gradient / 128).square().sum(dim=(1, 2, 3))
    c = 0.0015 * step.eps / (8 / 255)
    alpha = (2 * step.eps / (1 + v.sqrt() / c)).clamp(step.eps / 2, 1.75 * step.eps)
    alpha = torch.full_like(alpha, step.eps) if warm_up else alpha
    assert len(alpha.unique()) == (1 if warm_up else len(alpha))
    x_adv = step.clip(start + alpha[:, None, None, None] * gradient.sign())
    step.check(cross_entropy(step.model(x_adv), step.y))
    assert torch.allclose(step.batch.read(step.loop.bank["delta"]), x_adv - step.x)


def test_atas_moves_by_the_texts_step_at_first():
    # the text: gamma / C = 16/255 for an example without gradient; Eq. 5.16: gamma / sqrt(C)
    for root, longest in (("v", 16 / 255), ("sum", 1.6 / 255)):
        step = Step("atas-text", root=root)
        step.loop.bank["delta"].zero_()
        for p in step.loop.model.parameters():
            p.data.mul_(1e-9)  # nearly no gradient
        step.loop.defense.train_step(step.batch, step.loop)
        moved = step.batch.read(step.loop.bank["delta"]).abs().amax()
        assert math.isclose(moved, longest, rel_tol=1e-5)


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("root", ["sum", "v"])
def test_atas_text(root, monotone):
    step = Step("atas-text", root=root, monotone=str(monotone), gamma="0.02eps", c=0.04, beta=0.25)
    v, largest = torch.zeros_like(step.x[:, 0, 0, 0]), torch.zeros_like(step.x[:, 0, 0, 0])
    for scale in (1.0, 0.2):  # the second gradient is smaller
        with torch.no_grad():
            for p in (*step.model.parameters(), *step.loop.model.parameters()):
                p.mul_(scale)
        start = carried(step)
        gradient = own_gradients(step, start)
        v = 0.25 * v + 0.75 * gradient.square().sum(dim=(1, 2, 3))
        largest = torch.maximum(largest, v)
        used = largest if monotone else v
        alpha = 0.02 * step.eps / ((used + 0.04).sqrt() if root == "sum" else used.sqrt() + 0.04)
        x_adv = step.clip(start + alpha[:, None, None, None] * gradient.sign())
        step.check(cross_entropy(step.model(x_adv), step.y))
        assert torch.allclose(step.batch.read(step.loop.bank["delta"]), x_adv - step.x)
    assert (largest > v).any()


class Itself(nn.Module):
    """A parametrization that is a weight of its own."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, _):
        return self.weight


@pytest.mark.parametrize("name", ["binary-subnet", "binary-subnet-fast"])
def test_binary_subnet(name):
    step = Step(name, r=0.5, steps=2, alpha="0.25eps")
    scores, signs, weights = [], [], []
    for layer in linear_layers(step.model):  # the weights as the text has them: signs where the score is among the top
        mask = layer.parametrizations.weight[0]
        scores.append(mask.scores.detach().clone())
        signs.append(layer.parametrizations.weight.original.detach().clone())
        lowest = mask.scores.flatten().sort(descending=True).values[mask.keep - 1]
        layer.parametrizations.weight[0] = Itself(signs[-1] * (scores[-1] >= lowest))
        weights.append(layer.parametrizations.weight[0].weight)
    start = carried(step) if name.endswith("fast") else step.start()
    loss = cross_entropy(step.model(step.pgd(start, steps=2)), step.y)
    gradients = torch.autograd.grad(loss, weights)
    step.loop.defense.train_step(step.batch, step.loop)
    for mask, before, sign, gradient in zip(masks(step.loop.model), scores, signs, gradients, strict=True):
        assert torch.allclose(before - mask.scores, sign * gradient, rtol=1e-6, atol=1e-9)
