"""One step of the defenses with targets, weights or eps of each example, against plain formulas, in float64."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from tests.defenses.exact_step import Step


def soft(logits, targets):
    """The cross entropy of each example with a soft label."""
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1)


def carried(step):
    """The start of the attack: the bank's first perturbations, on the place of the batch's crop."""
    return step.clip(step.x + step.batch.read(step.loop.bank["delta"]))


def one_step_of_atta(step):
    start = carried(step)
    return step.clip(start + step.eps / 2 * step.gradient(start, training=False).sign())


def test_atta_rw():
    step = Step("atta-rw", warm_up=0.0)
    logits = step.model(one_step_of_atta(step))
    w = step.probability(logits)
    step.check((w * cross_entropy(logits, step.y, reduction="none")).sum() / w.sum())


def test_atta_rw_has_no_weights_before():
    step = Step("atta-rw", warm_up=0.5)
    step.check(cross_entropy(step.model(one_step_of_atta(step)), step.y))


def test_atta_at():
    step = Step("atta-at", warm_up=0.0, rho=0.7, beta=0.2)
    average = one_hot(step.y, 10).double()
    for _ in range(2):  # the second step goes on from the average of the first
        logits = step.model(one_step_of_atta(step))
        average = 0.7 * average + 0.3 * logits.detach().softmax(dim=1)
        step.check(soft(logits, 0.2 * one_hot(step.y, 10) + 0.8 * average).mean())


def test_sat():
    step = Step("sat", start=0.0, momentum_of_targets=0.6, steps=2, beta=3.0)
    targets = one_hot(step.y, 10).double()
    for _ in range(2):
        clean = step.in_eval_mode(step.x).softmax(dim=1)

        def divergence(x, clean=clean):
            return (clean * (clean.log() - step.model(x).log_softmax(dim=1))).sum()

        x_adv = step.pgd(step.noisy(), steps=2, loss=divergence)
        logits, logits_adv = step.model(step.x), step.model(x_adv)
        targets = 0.6 * targets + 0.4 * logits.detach().softmax(dim=1)
        w = targets.max(dim=1).values
        p = logits.softmax(dim=1)
        kl = (p * (p.log() - logits_adv.log_softmax(dim=1))).sum(dim=1).mean()
        step.check((w * soft(logits, targets)).sum() / w.sum() + 3.0 * kl)


def test_sat_is_trades_before_its_start():
    step, trades = Step("sat", start=0.5, beta=6.0), Step("trades", beta=6.0, alpha="0.25eps")
    for each in (step, trades):
        each.loop.defense.train_step(each.batch, each.loop)
    assert torch.equal(step.loop.model[0].weight, trades.loop.model[0].weight)


def test_iat():
    step = Step("iat", steps=2, change="0.5eps", rate=0.25, warm_up=0.0)
    step.label_by_prediction()
    own = torch.linspace(0.02, 0.5, len(step.y)).double() * step.eps
    step.batch.write(step.loop.bank["eps"], own)

    def attacked(eps):
        size = eps.reshape(-1, 1, 1, 1)
        low, high = (step.x - size).clamp(min=0), (step.x + size).clamp(max=1)
        noise = 2 * torch.rand(step.x.shape, generator=step.generator, dtype=torch.float64) - 1
        x_adv = (step.x + size * noise).clamp(0, 1)
        for _ in range(2):
            moved = x_adv + size / 4 * step.gradient(x_adv, training=False).sign()
            x_adv = torch.minimum(torch.maximum(moved, low), high)
        return x_adv

    chosen = own - 0.5 * step.eps
    for eps in (own, own + 0.5 * step.eps):
        resists = step.in_eval_mode(attacked(eps)).argmax(dim=1) == step.y
        chosen = torch.where(resists, eps, chosen)
    eps = (0.75 * own + 0.25 * chosen).clamp(min=0)
    assert (eps > own).any()
    assert (eps < own).any()
    step.check(cross_entropy(step.model(attacked(eps)), step.y))
    assert torch.allclose(step.batch.read(step.loop.bank["eps"]), eps, rtol=1e-6)


@pytest.mark.parametrize("burn_in", [0.0, 0.5])
def test_gairat(burn_in):
    step = Step("gairat", steps=4, shift=-0.5, burn_in=burn_in)
    step.label_by_prediction()
    x_adv, kappa = step.start(), torch.zeros(len(step.y))
    for _ in range(4):
        kappa += step.in_eval_mode(x_adv).argmax(dim=1) == step.y
        x_adv = step.pgd(x_adv, steps=1)
    w = (1 + torch.tanh(-0.5 + 5 * (1 - 2 * kappa / 4))) / 2 if burn_in == 0 else torch.ones(len(step.y))
    losses = cross_entropy(step.model(x_adv), step.y, reduction="none")
    assert len(kappa.unique()) > 1
    step.check((w * losses).sum() / w.sum())
