"""One step of `at`, `pas`, `kd-swa` and `finetune`, against plain formulas, in float64; what they start from."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from attacks.deepfool import DeepFool
from bench.core.errors import UserError
from bench.testing.contracts import EPS, DefenseContract, tiny_model
from bench.training.snapshots import Snapshots
from tests.defenses.exact_step import Step


@pytest.fixture
def weights(tmp_path):
    """Files of two networks, neither of which is the one in training."""
    files = []
    for scale in (2.0, -1.0):
        model = tiny_model()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(scale)
        state = model.state_dict()
        files.append(str(tmp_path / f"{scale}.pt"))
        torch.save(state, files[-1])
    return files


def logits_of(file, x):
    model = tiny_model()
    model.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        return model.double().eval()(x)


def test_at():
    step = Step("at", attack="fgsm")
    x_adv = step.clip(step.x + step.eps * step.gradient(step.x, training=False).sign())
    step.check(cross_entropy(step.model(x_adv), step.y))


@pytest.mark.parametrize(("attack", "factor"), [("deepfool", 1.0), ("deepfool:eps=0.1", 0.1 / EPS["Linf"])])
def test_at_projects_the_points_of_a_minimum_norm_attack(attack, factor, monkeypatch):
    monkeypatch.setattr(DeepFool, "perturb", lambda *call, **_: call[2].x + 0.5)
    loop = DefenseContract().loop("at", attack=attack)
    seen = []
    loop.model.register_forward_pre_hook(lambda *call: seen.append(call[1][0].detach()))
    batch = next(loop.shuffled())
    loop.defense.train_step(batch, loop)
    assert torch.allclose(seen[-1], (batch.x + factor * loop.eps).clamp(max=1))


def test_at_refuses_an_attack_of_another_norm():
    with pytest.raises(UserError, match="a different norm"):
        DefenseContract().loop("at", attack="pgd:norm=L2:eps=1")


def test_pas():
    step = Step("pas", steps=2, epochs=4, eps_growth="linear", eps_max="2eps")
    step.loop.steps_done = step.loop.steps // 8  # a quarter of the first period
    step.model, whole = step.model.live, step.eps
    step.eps = step.loop.eps
    assert step.eps == pytest.approx(2 * 0.3 * step.loop.progress / 0.5)
    assert whole < step.eps < 0.3
    live = step.loop.model.live
    before = [p.detach().clone() for p in live.parameters()]
    wanted = torch.autograd.grad(
        cross_entropy(step.model(step.pgd(step.start(), steps=2)), step.y), list(step.model.parameters())
    )
    step.loop.defense.train_step(step.batch, step.loop)
    for old, new, gradient in zip(before, live.parameters(), wanted, strict=True):
        assert torch.allclose(old - new, gradient, rtol=1e-6, atol=1e-9)


def test_the_predictor_of_pas_is_the_mean_of_the_networks_at_the_ends_of_the_periods():
    loop = DefenseContract().loop("pas", steps=1, epochs=4)
    ends, images = [], loop.split.take(torch.arange(8)).x
    for _ in range(4):
        loop.run_epoch()
        with torch.no_grad():
            ends.append(copy.deepcopy(loop.model.live).eval()(images).softmax(dim=1))
        taken = ends[1:]  # after 2, 3 and 4 of 4 epochs
        wanted = torch.stack(taken or ends).mean(dim=0)
        with torch.no_grad():
            found = loop.defense.predictor(loop).eval()(images)
        assert torch.allclose(found.exp(), wanted, atol=1e-6)


def test_pas_without_an_ensemble_trains_the_model_itself():
    loop = DefenseContract().loop("pas", ensemble="false", swa=0.5)
    assert not isinstance(loop.model, Snapshots)
    with pytest.raises(UserError, match="ensemble is True"):
        DefenseContract().loop("pas", swa=0.5)


def test_kd_swa(weights):
    step = Step(
        "kd-swa", steps=2, robust_teacher=weights[0], standard_teacher=weights[1], robust_share=0.3,
        standard_share=0.2, temperature=3.0,
    )  # fmt: skip
    x_adv = step.pgd(step.start(), steps=2)
    logits, loss = step.model(x_adv), 0.0
    for share, file in ((0.3, weights[0]), (0.2, weights[1])):
        p = (logits_of(file, x_adv) / 3).softmax(dim=1)
        loss = loss + share * 9 * (p * (p.log() - (logits / 3).log_softmax(dim=1))).sum(dim=1).mean()
    step.check(loss + 0.5 * cross_entropy(logits, step.y))


@pytest.mark.parametrize(("reweight", "beta"), [("true", 6.0), ("true", 0.0), ("false", 2.0)])
def test_finetune(weights, reweight, beta):
    step = Step("finetune", checkpoint=weights[0], steps=2, reweight=reweight, beta=beta)
    state = torch.load(weights[0], weights_only=True)
    for key, value in step.model.named_parameters():
        assert torch.equal(value, state[key].double())
    logits_adv = step.model(step.pgd(step.start(), steps=2))
    p = step.model(step.x).softmax(dim=1)
    w = step.probability(logits_adv) if reweight == "true" else torch.ones(len(step.y))
    kl = (p * (p.log() - logits_adv.log_softmax(dim=1))).sum(dim=1)
    step.check((w * (cross_entropy(logits_adv, step.y, reduction="none") + beta * kl)).sum() / w.sum())


@pytest.mark.parametrize(("settings", "said"), [
    ({}, "give --set checkpoint=FILE"),
    ({"checkpoint": "none.pt"}, "none.pt does not exist"),
    ({"extra": "none.npz"}, "none.npz does not exist"),
])  # fmt: skip
def test_files_that_are_missing(settings, said, weights):
    with pytest.raises(UserError, match=said):
        DefenseContract().loop("finetune", **({"checkpoint": weights[0]} if "extra" in settings else {}) | settings)


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "it.pt")
    with pytest.raises(UserError, match="a different architecture"):
        DefenseContract().loop("finetune", checkpoint=str(tmp_path / "it.pt"))


@pytest.fixture
def extra(tmp_path):
    """80 white images, of class 3."""
    file = tmp_path / "extra.npz"
    np.savez(file, x_extra=np.full((80, 8, 8, 1), 255, np.uint8), y_extra=np.full(80, 3))
    return str(file)


@pytest.mark.parametrize("defense", ["finetune", "pgd-at"])
def test_half_of_each_batch_is_additional_data(weights, extra, defense):
    settings = {"checkpoint": weights[0]} if defense == "finetune" else {}
    loop = DefenseContract().loop(defense, extra=extra, crop=1, **settings)
    batches = list(loop.defense.batches(loop))
    assert loop.steps_per_epoch == len(batches) == 5  # 40 training examples, in batches of 8 + 8
    assert sorted(i for batch in batches for i in batch.index.tolist() if i >= 0) == list(range(40))
    for batch in batches:
        white = (batch.x[:, :, 1:-1, 1:-1] == 1).flatten(1).all(dim=1)  # a crop has a black border
        assert white.tolist() == (batch.index == -1).tolist() == [False] * 8 + [True] * 8
        assert (batch.y[white] == 3).all()
    loop.run()


@pytest.mark.parametrize(("share", "own"), [(0.3, 11), (0.7, 5)])
def test_additional_data_fill_batches_of_one_size(extra, share, own):
    loop = DefenseContract().loop("pgd-at", extra=extra, extra_share=share)
    batches = list(loop.shuffled())
    assert {len(batch) for batch in batches[:-1]} == {16}
    assert {int((batch.index >= 0).sum()) for batch in batches[:-1]} == {own}
    assert sorted(i for batch in batches for i in batch.index.tolist() if i >= 0) == list(range(40))


@pytest.mark.parametrize(("x", "y", "said"), [
    (np.zeros((4, 9, 8, 1), np.uint8), [0, 1, 2, 3], "those of the training data are"),
    (np.zeros((4, 8, 8, 1), np.uint8), [0, 1, 2, 10], "it must be below 10"),
    (np.zeros((4, 8, 8, 1), np.float32), [0, 1, 2, 3], "must be uint8"),
])  # fmt: skip
def test_additional_data_that_do_not_fit(tmp_path, weights, x, y, said):
    np.savez(tmp_path / "it.npz", x_extra=x, y_extra=np.array(y))
    with pytest.raises(UserError, match=said):
        DefenseContract().loop("finetune", checkpoint=weights[0], extra=str(tmp_path / "it.npz"))


@pytest.mark.parametrize("defense", ["pgd-at", "r-pgd"])
def test_raw_steps_that_decay(defense):
    step = Step(
        defense, steps=3, step="raw", alpha=2.0, alpha_decay=0.5, alpha_decay_every=2, random_start="false", crop=0,
    )  # fmt: skip
    points = [step.x]
    for size in (2.0, 2.0, 1.0):
        x = points[-1].clone().requires_grad_()
        logits = step.model.eval()(x)
        others = logits.detach().masked_fill(torch.nn.functional.one_hot(step.y, 10).bool(), -torch.inf).argmax(dim=1)
        up, sign = (step.y, -1) if defense == "pgd-at" else (others, 1)
        height = sign * logits.log_softmax(dim=1)[torch.arange(len(up)), up].sum()
        points.append(step.clip(x.detach() + size * torch.autograd.grad(height, x)[0]))
    chosen = points[-1]
    if defense == "r-pgd":  # the highest reflected loss of all
        heights = []
        for point in points:
            own = torch.nn.functional.one_hot(step.y, 10).bool()
            logits = step.in_eval_mode(point)
            heights.append(logits.log_softmax(dim=1).masked_fill(own, -torch.inf).amax(dim=1))
        chosen = torch.stack(points)[torch.stack(heights).argmax(dim=0), torch.arange(len(step.y))]
    step.model.train()
    step.check(cross_entropy(step.model(chosen), step.y))
