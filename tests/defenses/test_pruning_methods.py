"""HYDRA, FlyingBird, FlyingBird+, BCS and ATMC: exact budgets, what may change when, and single steps."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from bench.core.errors import UserError
from bench.testing.contracts import DefenseContract
from bench.training.architecture import latent, linear_layers
from bench.training.budgets import quota_budgets
from bench.training.pruning import highest, weight_mask
from bench.training.quantisation import clustered
from defenses.flyingbird import FlyingBirdPlus
from tests.defenses.exact_step import Step

SIZES = [36, 2560]  # of the tiny model
METHODS = [
    ("hydra", {}), ("hydra", {"allocation": "global"}), ("hydra", {"gamma": 0.1, "objective": "pgd"}), ("bcs", {}),
    ("flyingbird", {}), ("flyingbird", {"growth": "random"}), ("flyingbird-plus", {}), ("atmc", {}),
    ("atmc", {"allocation": "layer", "gamma": 0.1, "bits": 1}), ("atmc", {"bits": 2}),
]  # fmt: skip


def kept(model):
    return [int((layer.weight != 0).sum()) for layer in linear_layers(model)]


def masked(model):
    return [int(weight_mask(layer).mask.sum()) for layer in linear_layers(model)]


@pytest.mark.parametrize("r", [0.9, 0.97])
@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_the_budget_is_never_exceeded_at_the_end(name, settings, r):
    loop = DefenseContract().loop(name, r=r, epochs=3, lr=0.5, **settings)
    predictor, _ = loop.run()
    budget = round((1 - r) * sum(SIZES))
    if name == "atmc":
        assert sum(kept(predictor)) == budget
    else:
        assert sum(masked(predictor)) == budget
        assert sum(kept(predictor)) <= budget


@pytest.mark.parametrize("name", ["hydra", "flyingbird", "bcs"])
def test_binary_networks_have_weights_of_one_and_keep_the_budget(name):
    loop = DefenseContract().loop(name, r=0.9, epochs=3, binary="true")
    predictor, _ = loop.run()
    assert sum(kept(predictor)) == round(0.1 * sum(SIZES))
    for layer in linear_layers(predictor):
        assert set(layer.weight.unique().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(("name", "settings"), [
    ("hydra", {"select": "best", "validation": 0.1}), ("hydra", {"periods": (0.5,)}), ("hydra", {"swa": 0.5}),
    ("atmc", {"select": "best", "validation": 0.1}), ("atmc", {"bits": 9}), ("atmc", {"binary": "true"}),
    ("flyingbird", {"ema": 0.9}), ("bcs", {"r": 1.0}), ("flyingbird", {"r": 0.9999}),
])  # fmt: skip
def test_settings_that_cannot_keep_a_budget_are_refused(name, settings):
    with pytest.raises(UserError):
        DefenseContract().loop(name, **settings)


def test_quotas_give_small_layers_large_shares():
    budgets = quota_budgets([100, 1000, 100_000], 0.01)
    assert sum(budgets) == 1011
    shares = [n / size for n, size in zip(budgets, [100, 1000, 100_000], strict=True)]
    forces = [1 / n - 1 / size for n, size in zip(budgets, [100, 1000, 100_000], strict=True)]
    assert shares[0] > shares[1] > shares[2]
    assert max(forces) / min(forces) == pytest.approx(1, abs=0.02)  # 1/n - 1/size is the force of every layer


def test_highest_counts_over_all_tensors_or_in_each():
    values = [torch.tensor([[3.0, 1.0]]), torch.tensor([2.0, 5.0, 0.0])]
    assert [m.tolist() for m in highest(values, 2)] == [[[1, 0]], [0, 1, 0]]
    assert [m.tolist() for m in highest(values, [1, 2])] == [[[1, 0]], [1, 1, 0]]


# HYDRA


def test_hydra_changes_weights_in_the_first_and_last_period_and_masks_in_the_second():
    loop = DefenseContract().loop("hydra", r=0.9, epochs=3, periods=(1 / 3, 2 / 3), lr=1.0)
    seen = []
    for _ in range(3):
        loop.run_epoch()
        layers = linear_layers(loop.model)
        weights = [p.detach().clone() for layer in layers for p in (latent(layer), layer.bias)]
        seen.append((weights, [weight_mask(layer).mask.clone() for layer in layers]))
    (dense, ones), (frozen, chosen), (tuned, final) = seen
    assert all(mask.all() for mask in ones)
    assert all(torch.equal(a, b) for a, b in zip(dense, frozen, strict=True))  # bit for bit, biases too
    assert all(torch.equal(a, b) for a, b in zip(chosen, final, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(frozen, tuned, strict=True))
    first = highest([latent(layer).detach().abs() for layer in linear_layers(loop.model)], [4, 256])
    assert any(not torch.equal(a, b) for a, b in zip(first, final, strict=True))  # not the largest weights any more


def test_scores_of_hydra_start_in_proportion_to_the_weights():
    loop = DefenseContract().loop("hydra", r=0.9)
    loop.defense.start_pruning(loop.model)
    for layer, fan in zip(linear_layers(loop.model), (9, 256), strict=True):
        weight = latent(layer)
        assert torch.allclose(weight_mask(layer).scores, math.sqrt(6 / fan) * weight / weight.abs().max())
        smallest_kept = weight.abs()[weight_mask(layer).mask > 0].min()
        assert smallest_kept >= weight.abs()[weight_mask(layer).mask == 0].max()
    before = [weight_mask(layer).mask.clone() for layer in linear_layers(loop.model)]
    for layer in linear_layers(loop.model):
        weight_mask(layer).scores.data.zero_()
    loop.defense.start_pruning(loop.model)  # there is a mask: it starts once
    assert all(torch.equal(a, weight_mask(b).mask) for a, b in zip(before, linear_layers(loop.model), strict=True))


@pytest.mark.parametrize("objective", ["pgd", "trades"])
def test_a_step_on_scores_follows_the_gradient_of_the_mask(objective):
    step = Step("hydra", r=0.9, objective=objective, steps=2, epochs=4, periods=(0.25, 0.75))
    step.loop.steps_done = step.loop.steps // 2
    step.loop.defense.start_pruning(step.loop.model)
    step.model = copy.deepcopy(step.loop.model)
    clean = step.in_eval_mode(step.x)
    p, log_p = clean.softmax(dim=1), clean.log_softmax(dim=1)

    def divergence(x):
        return (p * (log_p - step.model(x).log_softmax(dim=1))).sum(dim=1).sum()

    trades = objective == "trades"
    x_adv = step.pgd(step.noisy(), 2, loss=divergence) if trades else step.pgd(step.start(), 2)
    layers = linear_layers(step.model)
    weights = [layer.weight for layer in layers]
    with torch.nn.utils.parametrize.cached():
        weights = [layer.weight for layer in layers]
        logits_adv = step.model(x_adv) if not trades else None
        if trades:
            logits, logits_adv = step.model(step.x), step.model(x_adv)
            q = logits.softmax(dim=1)
            kl = (q * (logits.log_softmax(dim=1) - logits_adv.log_softmax(dim=1))).sum(dim=1).mean()
            loss = cross_entropy(logits, step.y) + 6 * kl
        else:
            loss = cross_entropy(logits_adv, step.y)
        effective = torch.autograd.grad(loss, weights)
    before = [weight_mask(layer).scores.detach().clone() for layer in linear_layers(step.loop.model)]
    step.loop.defense.train_step(step.batch, step.loop)
    for old, layer, gradient in zip(before, linear_layers(step.loop.model), effective, strict=True):
        assert torch.allclose(
            old - weight_mask(layer).scores, gradient * latent(layer) * old.sign(), rtol=1e-6, atol=1e-9
        )
    chosen = highest([weight_mask(layer).scores.detach().abs() for layer in linear_layers(step.loop.model)], [4, 256])
    assert all(torch.equal(weight_mask(a).mask, b) for a, b in zip(linear_layers(step.loop.model), chosen, strict=True))


# FlyingBird


def test_an_update_prunes_the_smallest_weights_and_grows_at_the_largest_gradients():
    step = Step("flyingbird", r=0.5, updates=1000, steps=2, epochs=4, lr=0.0001)
    step.loop.steps_done = step.loop.steps // 2
    share = 0.005 + 0.495 / 2  # half of the cosine
    x_adv = step.pgd(step.start(), 2)
    layers = linear_layers(step.model)
    with torch.nn.utils.parametrize.cached():
        weights = [layer.weight for layer in layers]
        gradients = torch.autograd.grad(cross_entropy(step.model(x_adv), step.y), weights)
    step.loop.defense.train_step(step.batch, step.loop)
    for old, layer, gradient in zip(layers, linear_layers(step.loop.model), gradients, strict=True):
        before, after = weight_mask(old).mask, weight_mask(layer).mask
        number, replaced = int(before.sum()), math.ceil(share * int(before.sum()))
        moved = (latent(old) - 0.0001 * gradient).abs().masked_fill(before == 0, -1)  # momentum 0, no decay
        (left,) = highest([moved], [number - replaced])
        (grown,) = highest([gradient.abs().masked_fill(left > 0, -1)], [replaced])
        assert torch.equal(after, left + grown)
        assert (latent(layer)[(after > 0) & (before == 0)] == 0).all()
        assert (latent(layer)[after == 0] == 0).all()


def test_updates_are_spread_over_the_training():
    loop = DefenseContract().loop("flyingbird", r=0.9, updates=3, epochs=6)
    changes, previous = [], [weight_mask(layer).mask.clone() for layer in linear_layers(loop.model)]
    for number in range(loop.steps):
        loop.train_on(next(loop.shuffled()))
        masks = [weight_mask(layer).mask.clone() for layer in linear_layers(loop.model)]
        if any(not torch.equal(a, b) for a, b in zip(masks, previous, strict=True)):
            changes.append(number / loop.steps)
        previous = masks
    assert changes == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize(("robust", "validation", "wanted"), [
    ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], (0.0, 0.0)),
    ([0.1, 0.3, 0.5], [0.1, 0.2, 0.3], (0.4, 0.0)),
    ([0.1, 0.1, 0.1], [0.3, 0.2, 0.1], (0.4, 0.05)),
    ([0.5, 0.3, 0.1], [0.3, 0.2, 0.1], (0.0, 0.05)),
])  # fmt: skip
def test_the_density_follows_the_gap_and_the_validation(robust, validation, wanted):
    loop = DefenseContract().loop("flyingbird-plus", r=0.9, validation=0.1, epochs=4)
    assert isinstance(loop.defense, FlyingBirdPlus)
    loop.log = [{"epoch": n + 1, "pgd": value} for n, value in enumerate(validation)]
    loop.bank["robust_of_epoch"][:3] = torch.tensor(robust)
    loop.steps_done = loop.steps * 3 // 4
    assert loop.defense.density_changes(loop) == wanted
    loop.steps_done = loop.steps // 4
    assert loop.defense.density_changes(loop) == (0.0, 0.0)


@pytest.mark.parametrize(("changes", "budget_after"), [((0.4, 0.0), False), ((0.0, 0.05), True)])
def test_more_pruning_lowers_the_density_and_more_growth_never_exceeds_the_budget(changes, budget_after, monkeypatch):
    monkeypatch.setattr(FlyingBirdPlus, "density_changes", lambda *_: changes)
    loop = DefenseContract().loop("flyingbird-plus", r=0.9, updates=4, epochs=4)
    budget = round(0.1 * sum(SIZES))
    loop.run()
    assert (sum(masked(loop.model)) == budget) == budget_after
    assert sum(masked(loop.model)) <= budget


# BCS


def test_a_connection_whose_strength_falls_to_zero_is_replaced_and_signs_never_change():
    loop = DefenseContract().loop("bcs", r=0.5, lr=5.0, epochs=2)
    layers = linear_layers(loop.model)
    signs = [weight_mask(layer).sign.clone() for layer in layers]
    before = [weight_mask(layer).mask.clone() for layer in layers]
    loop.train_on(next(loop.shuffled()))
    after = [weight_mask(layer).mask for layer in layers]
    assert sum(int(mask.sum()) for mask in after) == sum(int(mask.sum()) for mask in before)
    lost = sum(int(((a == 0) & (b > 0)).sum()) for a, b in zip(after, before, strict=True))
    assert lost > 0
    for layer, sign, old in zip(layers, signs, before, strict=True):
        theta, mask = latent(layer), weight_mask(layer).mask
        assert torch.equal(weight_mask(layer).sign, sign)
        assert torch.equal(layer.weight, sign * theta * mask)
        assert (theta[mask > 0] > 0).all()
        assert (theta[mask == 0] == 0).all()
        assert torch.allclose(theta[(mask > 0) & (old == 0)], torch.tensor(1e-12))


def test_noise_moves_the_strengths_of_connections_only():
    loop = DefenseContract().loop("bcs", r=0.5, noise=0.01, lr=0.1)
    layers = linear_layers(loop.model)
    before = [latent(layer).detach().clone() for layer in layers]
    masks = [weight_mask(layer).mask.clone() for layer in layers]
    loop.defense.after_step(loop)
    moved = torch.cat([(latent(layer) - old)[mask > 0] for layer, old, mask in zip(layers, before, masks, strict=True)])
    assert float(moved.detach().std()) == pytest.approx(0.001, rel=0.2)


# ATMC


def test_a_step_of_atmc_draws_weights_to_the_quantised_ones_and_keeps_the_largest():
    step = Step("atmc", r=0.5, steps=2, bits=1, rho=0.3, dense=0.0, interval=1, lr=1.0)
    weights = [layer.weight.detach() for layer in linear_layers(step.model)]
    masks = highest([w.abs() for w in weights], round(0.5 * sum(SIZES)))
    x_adv = step.pgd(step.start(), 2)  # of the dense network, with which the phase begins
    for layer, mask in zip(linear_layers(step.model), masks, strict=True):
        layer.weight.data.mul_(mask)
    trained = [layer.weight for layer in linear_layers(step.model)]
    losses = cross_entropy(step.model(step.x), step.y), cross_entropy(step.model(x_adv), step.y)
    gradients = torch.autograd.grad(0.5 * losses[0] + 0.5 * losses[1], trained)  # z = w and u = 0: no distance yet
    step.loop.defense.train_step(step.batch, step.loop)
    moved = [w.detach() - g for w, g in zip(trained, gradients, strict=True)]
    wanted = [w * m for w, m in zip(moved, highest([w.abs() for w in moved], round(0.5 * sum(SIZES))), strict=True)]
    for number, (layer, w) in enumerate(zip(linear_layers(step.loop.model), wanted, strict=True)):
        assert torch.allclose(layer.weight, w, atol=1e-9)
        z, u = step.loop.bank[f"z.{number}"], step.loop.bank[f"u.{number}"]
        assert torch.equal(z, clustered(layer.weight.detach(), 1))
        assert torch.allclose(u, layer.weight - z)
    parts = [
        (other.weight.detach() - step.loop.bank[f"z.{n}"] + step.loop.bank[f"u.{n}"]).square().sum()
        for n, other in enumerate(linear_layers(step.loop.model))
    ]
    assert float(step.loop.defense.distance(step.loop).detach()) == pytest.approx(0.15 * float(sum(parts)))


def test_the_last_weights_have_as_many_values_as_the_bits_say():
    for bits, most in ((1, 2), (2, 4)):
        predictor, _ = DefenseContract().loop("atmc", r=0.8, bits=bits).run()
        for layer in linear_layers(predictor):
            assert 1 <= len(set(layer.weight[layer.weight != 0].tolist())) <= most


def test_clusters_of_two_values_are_their_best_split():
    weight = torch.tensor([0.0, 1.0, 1.2, 0.0, -2.0, -2.2, -1.8])
    assert torch.allclose(clustered(weight, 1), torch.tensor([0.0, 1.1, 1.1, 0.0, -2.0, -2.0, -2.0]))
    assert torch.equal(clustered(torch.zeros(3), 1), torch.zeros(3))
    assert torch.equal(clustered(torch.tensor([0.0, 2.0]), 8), torch.tensor([0.0, 2.0]))
