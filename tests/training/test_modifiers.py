"""Settings that modify any defense: AWP, weight averages, growth of eps, periods, label smoothing, cutout."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bench.core.config import OMITTED_AT_DEFAULT, TrainingConfig, as_json, make_config
from bench.core.errors import UserError
from bench.core.specs import OfEps
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.runs.compatibility import check_training
from bench.testing.contracts import DefenseContract, tiny_batch, tiny_model
from bench.training.schedules import drops, eps_at, learning_rate, times_of, times_without_effect, unreached_eps
from bench.training.weight_perturbation import perturbed_weights
from defenses.atas import ATAS
from defenses.fgsm_pgi import FGSMPGI
from defenses.free import Free
from defenses.pgd_at import PGDAT
from tests.defenses.exact_step import Step


def test_a_config_without_modifiers_has_the_json_of_before():
    assert not set(OMITTED_AT_DEFAULT) & set(as_json(TrainingConfig()))
    assert set(as_json(TrainingConfig(awp=0.1, periods=(0.5,)))) & set(OMITTED_AT_DEFAULT) == {"awp", "periods"}
    made = make_config(TrainingConfig, "it", as_json(TrainingConfig(eps_growth="linear", eps_max=OfEps(2))))
    assert (made.eps_growth, made.eps_max) == ("linear", OfEps(2))


@pytest.mark.parametrize(("setting", "value"), [
    ("periods", (0.5, 0.25)), ("periods", (0.0,)), ("awp", -1), ("label_smoothing", 1), ("cutout", -1), ("swa", 1),
    ("lr_warm_up", 1), ("eps_max", 0), ("eps_growth", "fast"), ("cutmix", 1.5),
    ("extra_share", 1),
])  # fmt: skip
def test_settings_out_of_range(setting, value):
    with pytest.raises(UserError, match=setting):
        make_config(TrainingConfig, "it", {setting: value})


@pytest.mark.parametrize(("growth", "progress", "wanted"), [
    ("none", 0.1, 0.3), ("linear", 0.0, 0.3e-6), ("linear", 0.25, 0.15), ("linear", 0.5, 0.3), ("linear", 0.9, 0.3),
    ("cosine", 1 / 3, 0.15), ("cosine", 0.5, 0.3), ("cosine", 0.25, 0.3 * (1 - math.sqrt(0.5))),
])  # fmt: skip
def test_eps_grows_as_in_equation_4_29(growth, progress, wanted):
    config = TrainingConfig(eps_growth=growth, eps_max=OfEps(2))
    assert math.isclose(eps_at(config, 0.3, progress), wanted, rel_tol=1e-9)


def test_learning_rate_and_eps_begin_anew_in_each_period():
    config = TrainingConfig(schedule="cosine", lr=1.0, periods=(0.5, 0.75), eps_growth="linear", eps_min=OfEps(0.2))
    for a, b in [(0.0, 0.5), (0.5, 0.75), (0.75, 1.0)]:
        assert learning_rate(config, a) == 1.0
        assert math.isclose(learning_rate(config, (a + b) / 2), 0.5)
        assert math.isclose(eps_at(config, 1.0, (a + b) / 2), 0.6)


def test_the_learning_rate_rises_in_the_warm_up():
    config = TrainingConfig(schedule="constant", lr=1.0, lr_warm_up=0.2)
    assert [learning_rate(config, p) for p in (0.0, 0.1, 0.2, 0.9)] == [0.0, 0.5, 1.0, 1.0]


def test_periods_that_a_short_training_does_not_have_are_named():
    assert not list(times_without_effect(times_of(TrainingConfig(schedule="constant", periods=(0.5, 0.75))), 40))
    (warning,) = times_without_effect(times_of(TrainingConfig(schedule="constant", periods=(0.5, 0.6))), 3)
    assert warning.startswith("periods: 0.5 has no effect")


def test_the_trainer_of_a_defense_has_the_eps_of_the_moment():
    loop = DefenseContract().loop("pgd-at", eps_growth="linear", eps_max="2eps")
    loop.steps_done = loop.steps // 4
    assert math.isclose(loop.eps, 2 * 0.3 * loop.progress)
    assert loop.threat.eps == loop.eps


def test_weights_move_along_the_gradient_in_proportion_to_their_norm_and_come_back():
    model, batch = tiny_model().double().train(), tiny_batch()
    x = batch.x.double()

    def loss():
        return cross_entropy(model(x), batch.y)

    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    before = copy.deepcopy(model.state_dict())
    gradients = dict(zip(names, torch.autograd.grad(loss(), [model.get_parameter(n) for n in names]), strict=True))
    model.load_state_dict(before)
    with perturbed_weights(model, model.parameters(), loss, 0.1):
        for name, value in model.state_dict().items():
            moved = 0.1 * before[name].norm() * gradients[name] / gradients[name].norm() if name in names else 0
            assert torch.allclose(value - before[name], torch.as_tensor(moved, dtype=value.dtype), atol=1e-12), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_one_step_of_trades_with_awp():
    step = Step("trades", steps=1, beta=2.0, alpha="0.25eps", awp=0.05)
    clean = step.in_eval_mode(step.x).softmax(dim=1)
    x_adv = step.pgd(
        step.noisy(), steps=1, loss=lambda x: (clean * (clean.log() - step.model(x).log_softmax(dim=1))).sum()
    )

    def loss():
        p = step.model(step.x).softmax(dim=1)
        kl = (p * (p.log() - step.model(x_adv).log_softmax(dim=1))).sum(dim=1).mean()
        return cross_entropy(step.model(step.x), step.y) + 2.0 * kl

    weights = [p for p in step.model.parameters() if p.dim() > 1]
    own = [p.detach().clone() for p in weights]
    slopes = torch.autograd.grad(loss(), weights)
    with torch.no_grad():
        for w, slope in zip(weights, slopes, strict=True):
            w.add_(0.05 * w.norm() * slope / slope.norm())
    gradients = torch.autograd.grad(loss(), list(step.model.parameters()))
    before = [p.detach().clone() for p in step.loop.model.parameters()]
    step.loop.defense.train_step(step.batch, step.loop)
    for old, new, gradient in zip(before, step.loop.model.parameters(), gradients, strict=True):
        assert torch.allclose(old - new, gradient, rtol=1e-6, atol=1e-9)
    assert not torch.equal(own[0], weights[0])


def test_label_smoothing_of_a_step():
    step = Step("pgd-at", steps=1, label_smoothing=0.3)
    logits = step.model(step.pgd(step.start(), steps=1))
    log_p = logits.log_softmax(dim=1)
    own = log_p[torch.arange(len(step.y)), step.y]
    step.check(-(0.7 * own + 0.3 * log_p.mean(dim=1)).mean())


@pytest.mark.parametrize(("defense", "setting"), [(Free, "awp"), (FGSMPGI, "awp"), (Free, "cutmix"), (ATAS, "extra")])
def test_a_defense_that_does_not_take_a_modifier_refuses_it(defense, setting):
    data = Arrays("it", *2 * (np.zeros((9, 4, 4, 1), np.uint8), np.arange(9) % 2))
    with pytest.raises(UserError, match=f"does not take {setting}"):
        check_training(
            defense(defense.config_class(**{setting: "it.npz" if setting == "extra" else 0.1})),
            data,
            ThreatModel("Linf", 0.1),
        )
    check_training(PGDAT(PGDAT.config_class(awp=0.1)), data, ThreatModel("Linf", 0.1))
    with pytest.raises(UserError, match="cutout is 5"):
        check_training(PGDAT(PGDAT.config_class(cutout=5)), data, ThreatModel("Linf", 0.1))


def test_swa_is_the_mean_of_the_ends_of_the_last_epochs():
    loop = DefenseContract().loop("standard", epochs=4, swa=0.5)
    ends = []
    original = loop.defense.end_epoch
    loop.defense.end_epoch = lambda trainer: (ends.append(copy.deepcopy(trainer.model.state_dict())), original(trainer))
    predictor, _ = loop.run()
    assert predictor is loop.averaged
    for name, value in predictor.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, (ends[2][name] + ends[3][name]) / 2, atol=1e-6), name


def test_there_is_no_average_before_it_starts():
    loop = DefenseContract().loop("standard", epochs=4, swa=0.5)
    loop.run_epoch()
    assert loop.averaged is None
    assert loop.defense.predictor(loop) is loop.model


@pytest.mark.parametrize("crop", [0, 2])
def test_cutout_sets_a_square_to_0_and_leaves_the_bank_there(crop):
    images = np.full((20, 6, 6, 1), 255, np.uint8)
    split = Split(images, np.arange(20) % 2, torch.device("cpu"), flip=True, crop=crop, cutout=3)
    batch = next(split.shuffled(20, torch.Generator().manual_seed(0)))
    plain = Split(images, np.arange(20) % 2, torch.device("cpu"), flip=True, crop=crop)
    whole = next(plain.shuffled(20, torch.Generator().manual_seed(0))).x
    holes = (batch.x == 0) & (whole == 1)
    assert torch.equal(holes, ~batch.view.kept & (whole == 1))
    areas = (~batch.view.kept).sum(dim=(1, 2, 3))
    assert {9, 6} <= set(areas.tolist()) <= {9, 6, 4}  # a square is cut off at the border
    bank = torch.full(split.canvas.shape, 5.0)
    assert torch.equal(batch.read(bank) == 0, ~batch.view.kept)
    batch.write(bank, torch.ones_like(batch.x))
    assert int((bank == 1).sum()) == int(batch.view.kept.sum())
    assert torch.equal(batch.read(bank), batch.view.kept.float())


def mixed_batch(crop=0, n=12):
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 1), np.uint8)
    split = Split(images, np.arange(20) % 4, torch.device("cpu"), flip=True, crop=crop, cutmix=1.0)
    plain = Split(images, np.arange(20) % 4, torch.device("cpu"), flip=True, crop=crop)
    batch, whole = (next(s.shuffled(n, torch.Generator().manual_seed(3))) for s in (split, plain))
    return split, batch, whole


def test_cutmix_shows_a_rectangle_of_another_image_and_shares_the_label_by_area():
    _, batch, whole = mixed_batch()
    inside, order = batch.view.inside, batch.view.order
    assert 0 < inside.sum() < 36
    rows, columns = inside.any(dim=1), inside.any(dim=0)
    assert torch.equal(inside, rows[:, None] & columns)  # a rectangle
    assert torch.equal(batch.x[..., ~inside], whole.x[..., ~inside])
    assert torch.equal(batch.x[..., inside], whole.x[order][..., inside])
    share = inside.float().mean()
    for label, other, target in zip(whole.y, whole.y[order], batch.target, strict=True):
        wanted = torch.zeros(4)
        wanted[label] += 1 - share
        wanted[other] += share
        assert torch.allclose(target, wanted)
    assert torch.equal(whole.target, whole.y)


@pytest.mark.parametrize("crop", [0, 2])
def test_a_bank_follows_each_pixel_of_a_mixture(crop):
    split, batch, _ = mixed_batch(crop)
    bank = split.canvas.float() / 255  # holds the images themselves, so reading it gives the batch
    assert torch.equal(batch.read(bank), batch.x)
    before = bank.clone()
    batch.write(bank, batch.x + 10)
    assert int((bank != before).sum()) == batch.x.numel()
    assert torch.equal(batch.read(bank), batch.x + 10)
    assert torch.equal(bank[bank != before], before[bank != before] + 10)


def test_a_share_of_the_batches_is_mixed():
    split = Split(np.zeros((9, 6, 6, 1), np.uint8), np.arange(9) % 3, torch.device("cpu"), cutmix=0.3)
    generator = torch.Generator().manual_seed(0)
    mixed = [split.augmented(torch.arange(9), generator).mixed is not None for _ in range(400)]
    assert 0.2 < sum(mixed) / 400 < 0.4


def test_one_step_on_mixed_images():
    step = Step("pgd-at", steps=1, batch_size=16)
    soft = torch.rand(len(step.y), 10, dtype=torch.float64).softmax(dim=1)
    step.batch = replace(step.batch, mixed=soft)

    def loss(x):
        return -(soft * step.model(x).log_softmax(dim=1)).sum(dim=1).mean()

    step.check(loss(step.pgd(step.start(), steps=1, loss=loss)))


@pytest.mark.parametrize(("growth", "eps_max", "steps", "said"), [
    ("linear", 1, 10, "90% of eps"), ("linear", 1, 200, None), ("cosine", 1, 10, "98% of eps"), ("linear", 2, 10, None),
    ("linear", 0.5, 200, "50% of eps"), ("none", 1, 1, None),
])  # fmt: skip
def test_an_eps_that_does_not_reach_its_end_is_warned_of(growth, eps_max, steps, said):
    config = TrainingConfig(eps_growth=growth, eps_max=OfEps(eps_max))
    warnings = list(unreached_eps(config, 0.1, steps))
    assert [said in warning for warning in warnings] == ([] if said is None else [True])
    loop = DefenseContract().loop("standard", epochs=1, schedule="constant", eps_growth=growth, eps_max=f"{eps_max}eps")
    _, cost = loop.run()
    assert cost.warnings == list(unreached_eps(config, 0.1, loop.steps))


def test_the_learning_rate_drops_in_each_period():
    config = TrainingConfig(milestones=(0.5,), periods=(0.5,))
    assert [drops(config, progress) for progress in (0.0, 0.2, 0.3, 0.5, 0.7, 0.8)] == [0, 0, 1, 0, 0, 1]
    assert drops(TrainingConfig(schedule="cosine"), 0.99) == 0


def test_an_absolute_eps_max_is_compared_with_the_eps_of_the_threat_model():
    assert not list(unreached_eps(TrainingConfig(eps_growth="linear", eps_max=0.8), 0.4, 1000))
    (warning,) = unreached_eps(TrainingConfig(eps_growth="linear", eps_max=0.05), 0.1, 1000)
    assert "50% of eps" in warning


@pytest.mark.parametrize(("settings", "epochs", "said"), [
    ({"ema": 0.99}, 10, "ema: after 30 steps, 75% of the average"), ({"ema": 0.9}, 10, None),
    ({"swa": 0.8}, 4, "swa: only the last of 4 epochs is averaged"), ({"swa": 0.5}, 4, None),
])  # fmt: skip
def test_an_average_for_which_the_training_is_too_short_is_warned_of(settings, epochs, said):
    loop = DefenseContract().loop("standard", epochs=epochs, schedule="constant", **settings)
    assert loop.steps == 3 * epochs
    _, cost = loop.run()
    assert [warning[: len(said or "")] for warning in cost.warnings] == ([] if said is None else [said])
