"""One step of the newer one-step defenses, against plain formulas, in float64."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.defenses.exact_step import Step


def divergence(step, clean):
    """KL(p_clean || p(x)), summed, for the logits of the clean images."""
    p = clean.softmax(dim=1)
    return lambda x: (p * (p.log() - step.model(x).log_softmax(dim=1))).sum()


def test_backward_smoothing():
    step = Step("backward-smoothing", beta=4.0, gamma=0.5, alpha="0.7eps")
    clean = step.in_eval_mode(step.x)
    psi = 2 * torch.rand(clean.shape, generator=step.generator) - 1
    far = step.gradient(step.x, training=False, loss=lambda x: (step.model(x) - clean - 0.5 * psi).square().sum())
    start = step.clip(step.x - step.eps * far.sign())
    x_adv = step.clip(start + 0.7 * step.eps * step.gradient(start, False, divergence(step, clean)).sign())
    logits, logits_adv = step.model(step.x), step.model(x_adv)
    p = logits.softmax(dim=1)
    kl = (p * (p.log() - logits_adv.log_softmax(dim=1))).sum(dim=1).mean()
    step.check(cross_entropy(logits, step.y) + 4.0 * kl)


def nuclear(matrix):
    """The largest inner product of M (B,K) with a matrix whose singular values are at most 1, as U V^T."""
    u, _, v = torch.linalg.svd(matrix.detach(), full_matrices=False)
    return (matrix * (u @ v)).sum()


def test_nuat():
    step = Step("nuat", penalty=3.0)
    coins = torch.rand(step.x.shape, generator=step.generator) < 0.5
    start = step.clip(step.x + torch.where(coins, 1, -1).double() * step.eps / 2)
    clean = step.in_eval_mode(step.x)
    penalty = 3.0 / len(step.y)

    def attacked(x):
        logits = step.model(x)
        return cross_entropy(logits, step.y) + penalty * nuclear(logits - clean)

    x_adv = step.clip(start + step.eps * step.gradient(start, training=False, loss=attacked).sign())
    logits, logits_adv = step.model(step.x), step.model(x_adv)
    step.check(cross_entropy(logits, step.y) + penalty * nuclear(logits_adv - logits))


def test_the_penalty_of_nuat_grows_when_the_learning_rate_drops():
    step = Step("nuat", penalty=3.0, growth=2.0, schedule="piecewise", milestones="0+0.5", decay=1.0)
    one = Step("nuat", penalty=6.0)
    for each in (step, one):
        each.loop.defense.train_step(each.batch, each.loop)
    assert torch.equal(step.loop.model[0].weight, one.loop.model[0].weight)


@pytest.mark.parametrize("prior", ["ep", "mep"])
def test_fgsm_pgi(prior):
    step = Step("fgsm-pgi", prior=prior, momentum_of_gradients=0.4, penalty=5.0, alpha="0.6eps")
    start, momentum = step.clip(step.x + step.batch.read(step.loop.bank["delta"])), 0.0
    for _ in range(3):
        gradient = step.gradient(start)
        x_adv = step.clip(start + 0.6 * step.eps * gradient.sign())
        before, after = step.model(start), step.model(x_adv)
        step.check(cross_entropy(after, step.y) + 5.0 * ((after - before) ** 2).mean())
        momentum = 0.4 * momentum + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
        start = x_adv if prior == "ep" else step.clip(start + 0.6 * step.eps * momentum.sign())
