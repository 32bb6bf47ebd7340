"""Polyhedral envelope regularisation: its gradient, its hinge, its samples, its schedules and its two readings."""

import pytest
import torch
from torch import nn

import defenses.per
from bench.core.contracts import mode_of
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.testing.contracts import DefenseContract
from defenses.per import Config, regulariser

NAMES = ("l-per", "i-per", "l-per-at", "i-per-at")


def network(shape=(1, 4, 4), classes=6, hidden=2):
    """A convolution and a linear hidden layer, or only the latter, in double precision."""
    channels, high, wide = shape
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        convolution = [nn.Conv2d(channels, 3, 3, padding=1), nn.ReLU()] if hidden == 2 else []
        width = (3 if hidden == 2 else channels) * high * wide
        rest = [nn.Flatten(), nn.Linear(width, 10), nn.ReLU(), nn.Linear(10, classes)]
        return nn.Sequential(*convolution, *rest).double()


def images(n=5, shape=(1, 4, 4), classes=6):
    """Some of whose pixels are at the border of the box."""
    generator = torch.Generator().manual_seed(1)
    x = (2 * torch.rand(n, *shape, generator=generator, dtype=torch.float64) - 0.5).clamp(0, 1)
    return x, torch.randint(classes, (n,), generator=generator)


def linear(distances, scale=1.0):
    """A model of one row of pixels whose hyperplanes of class 0 are so far from a grey image, under Linf."""
    last = nn.Linear(4, len(distances) + 1).double()
    with torch.no_grad():
        last.weight.zero_()
        last.weight[1:] = torch.tensor([1.0, -1.0, 1.0, -1.0]) * scale
        last.bias[0] = 0
        last.bias[1:] = -4 * scale * torch.tensor(distances)
    return nn.Sequential(nn.Flatten(), last)


def penalty_of(distances, alpha=0.2, nearest=4, **options):
    model, grey = linear(distances, **options), torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    threat, label = ThreatModel("Linf", 0.1), torch.tensor([0])
    found = regulariser(model, grey, label, threat, x=grey, alpha=alpha, nearest=nearest, intermediate="linear")
    return model, found


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("intermediate", ["linear", "ibp"])
@pytest.mark.parametrize("moved", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradient_is_that_of_finite_differences(norm, intermediate, moved):
    model, (centers, y) = network(), images()
    threat = ThreatModel(norm, 0.05 if norm == "Linf" else 0.1)
    shift = 0.02 * torch.randn(centers.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = (centers + shift * moved).clamp(0, 1)

    def penalty():
        return regulariser(model, centers, y, threat, x=x, alpha=0.3, nearest=4, intermediate=intermediate).sum()

    weights = list(model.parameters())
    gradients = torch.autograd.grad(penalty(), weights)
    assert sum(g.abs().sum() for g in gradients) > 1
    generator = torch.Generator().manual_seed(3)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        ends = []
        with torch.no_grad():
            for step in (1, -2):
                weight += step * 1e-6 * direction
                ends.append(penalty())
            weight += 1e-6 * direction
        assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]).item() / 2e-6, abs=1e-5)


def test_the_hinge_begins_at_alpha_and_goes_on_below_zero():
    model, found = penalty_of([0.05, 0.15, 0.25, -0.1])
    assert found.item() == pytest.approx(0.75 + 0.25 + 0 + 1.5)
    found.sum().backward()
    slope = model[1].bias.grad / 20  # of one hinge: 1 / (alpha |a|_1) = 1.25
    assert torch.allclose(slope * 20 / 1.25, torch.tensor([-3.0, 1, 1, 0, 1], dtype=torch.float64))


def test_examples_without_a_near_hyperplane_have_no_penalty():
    model, grey = linear([1.0]), torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    x = torch.cat([grey, grey + 0.4 * torch.tensor([1.0, -1, 1, -1]).view(1, 1, 1, 4)])  # 1 and 0.6 away
    threat, labels = ThreatModel("Linf", 0.1, box=None), torch.tensor([0, 0])
    for alpha, penalties in ((0.5, [0, 0]), (0.8, [0, 1 - 0.6 / 0.8])):
        found = regulariser(model, x, labels, threat, x=x, alpha=alpha, nearest=4, intermediate="linear")
        assert found.tolist() == pytest.approx(penalties)


def test_only_the_nearest_hyperplanes_count():
    _, found = penalty_of([0.1, 0.02, 0.04, 0.06, 0.08, 0.12])
    assert found.item() == pytest.approx(sum(1 - d / 0.2 for d in (0.02, 0.04, 0.06, 0.08)))
    _, found = penalty_of([0.1, 0.02], nearest=4)  # there are only two
    assert found.item() == pytest.approx(0.5 + 0.9)


def test_distances_do_not_depend_on_the_scale_of_the_logits():
    assert penalty_of([0.05, 0.3], scale=1e-3)[1].item() == pytest.approx(penalty_of([0.05, 0.3], scale=1e3)[1].item())


def test_distances_are_measured_from_the_point_and_inside_its_box():
    model, grey = linear([0.275]), torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    x = grey.clone()
    x[..., 0] = 1.0  # half a logit nearer, and this pixel has no room left
    found = regulariser(
        model, grey, torch.tensor([0]), ThreatModel("Linf", 0.1), x=x, alpha=0.4, nearest=4, intermediate="linear"
    )
    assert found.item() == pytest.approx(1 - (4 * 0.275 - 0.5) / 3 / 0.4)


def test_where_the_whole_box_is_wrong_there_is_a_gradient():
    model, found = penalty_of([0.1, -0.7])  # the corners of the box are 0.5 away
    assert found.item() == pytest.approx(0.5 + 1 + 0.7 / 0.2)
    found.sum().backward()
    assert torch.allclose(model[1].bias.grad[1:], torch.tensor([1.25, 1.25], dtype=torch.float64))


def test_both_bounds_agree_where_one_layer_is_hidden():
    (x, y), threat = images(), ThreatModel("Linf", 0.1)
    found = {
        (hidden, each): regulariser(
            network(hidden=hidden), x, y, threat, x=x, alpha=0.3, nearest=4, intermediate=each
        ).sum()
        for hidden in (1, 2)
        for each in ("linear", "ibp")
    }
    assert torch.allclose(found[1, "linear"], found[1, "ibp"])
    assert found[2, "linear"] < 0.99 * found[2, "ibp"]


def test_batch_norm_is_in_eval_mode_in_the_bounds():
    loop = DefenseContract().loop("l-per")
    batch, model = next(loop.shuffled()), loop.model
    found = {}
    for training in (True, False):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with mode_of(model, training=training):
            found[training] = regulariser(
                model, batch.x, batch.y, loop.threat, x=batch.x, alpha=0.3, nearest=4, intermediate="ibp"
            )
            assert model.training == training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(found[True], found[False])


def steps_of(name, monkeypatch, steps=1, epoch=0, **settings):
    """A step's batch, its regularisers' calls, and the images that the model sees in train mode."""
    loop = DefenseContract().loop(name, **settings)
    calls, seen = [], []

    def recorded(model, centers, y, threat, **rest):
        calls.append({"centers": centers, "y": y, "threat": threat} | rest)
        return regulariser(model, centers, y, threat, **rest)

    monkeypatch.setattr(defenses.per, "regulariser", recorded)
    loop.model.register_forward_hook(lambda module, args, _: seen.append(args[0]) if module.training else None)
    loop.model.train()
    loop.steps_done = epoch * loop.steps_per_epoch
    batch = next(loop.shuffled())
    loop.defense.train_step(batch, loop)
    return loop, batch, calls, seen


@pytest.mark.parametrize("name", NAMES)
def test_the_subsample_is_the_first_of_the_batch(name, monkeypatch):
    _, batch, (call,), _ = steps_of(name, monkeypatch, subsample="5")
    assert torch.equal(call["y"], batch.y[:5])
    assert len(call["centers"]) == len(call["x"]) == 5
    _, batch, (call,), _ = steps_of(name, monkeypatch)
    assert torch.equal(call["y"], batch.y)
    assert call["intermediate"] == ("linear" if name.startswith("l") else "ibp")


@pytest.mark.parametrize("name", ["l-per", "i-per"])
def test_plain_per_is_of_clean_images(name, monkeypatch):
    _, batch, (call,), seen = steps_of(name, monkeypatch)
    assert torch.equal(call["centers"], batch.x)
    assert torch.equal(call["x"], batch.x)
    assert len(seen) == 1
    assert torch.equal(seen[0], batch.x)


@pytest.mark.parametrize("name", ["l-per-at", "i-per-at"])
def test_as_released_half_of_the_images_are_attacked(name, monkeypatch):
    loop, batch, (call,), (seen,) = steps_of(name, monkeypatch, subsample="6")
    assert torch.equal(seen[::2], batch.x[::2])
    moved = (seen != batch.x).flatten(1).any(dim=1)
    assert moved[1::2].all()
    assert loop.threat.contains(seen, batch.x).all()
    assert torch.equal(call["centers"], seen[:6])
    assert torch.equal(call["x"], seen[:6])


@pytest.mark.parametrize("name", ["l-per-at", "i-per-at"])
def test_as_written_the_envelopes_are_around_the_clean_images(name, monkeypatch):
    loop, batch, (call,), seen = steps_of(name, monkeypatch, reading="paper")
    clean, attacked = seen
    assert torch.equal(clean, batch.x)
    assert (attacked != batch.x).flatten(1).any(dim=1).all()
    assert loop.threat.contains(attacked, batch.x).all()
    assert torch.equal(call["centers"], batch.x)
    assert torch.equal(call["x"], attacked)


@pytest.mark.parametrize("name", NAMES)
def test_while_it_warms_up_it_is_adversarial_training(name, monkeypatch):
    loop, batch, calls, (seen,) = steps_of(name, monkeypatch, epochs="10", warm_up="0.3", epoch=2)
    assert not calls
    assert (seen != batch.x).flatten(1).any(dim=1).all()
    assert loop.threat.contains(seen, batch.x).all()
    assert len(steps_of(name, monkeypatch, epochs="10", warm_up="0.3", epoch=3)[2]) == 1


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("released", [2, 4, 8, 16, 32]), ("paper", [1, 2, 4, 8, 16]), ("constant", [1 / 0.064] * 5)],
)
def test_eps_doubles_at_each_fifth_of_the_training(schedule, factors, monkeypatch):
    loop, _, (call,), _ = steps_of("l-per", monkeypatch, epochs="10", eps_schedule=schedule, epoch=5)
    found = []
    for step in range(loop.steps):
        loop.steps_done = step
        found.append(loop.defense.eps(loop))
    assert len(found) == 10 * 3
    assert found == pytest.approx([0.064 * loop.eps * factor for factor in factors for _ in range(2 * 3)])
    assert call["threat"] == ThreatModel("Linf", found[5 * 3])
    assert call["alpha"] == pytest.approx(1.5 * loop.eps)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_eps_reaches_its_end_in_a_training_of_few_epochs(epochs):
    loop = DefenseContract().loop("l-per", epochs=epochs, batch_size=2, schedule="constant")
    assert loop.steps_per_epoch == 20
    loop.steps_done = 0
    assert loop.defense.eps(loop) == pytest.approx(0.064 * loop.eps)
    loop.steps_done = loop.steps - 1
    assert loop.defense.eps(loop) == pytest.approx(1.024 * loop.eps)


@pytest.mark.parametrize(("batch_size", "lost"), [(20, "0.2, 0.6, 0.8"), (40, "0.2, 0.4, 0.6, 0.8"), (8, None)])
def test_a_schedule_without_steps_is_warned_of(batch_size, lost):
    loop = DefenseContract().loop("i-per", epochs=1, batch_size=batch_size)
    _, cost = loop.run()
    warned = [warning for warning in cost.warnings if warning.startswith("eps_schedule")]
    assert [f": {lost} has no effect" in warning for warning in warned] == ([] if lost is None else [True])


def test_gradients_are_clamped_entry_by_entry(monkeypatch):
    loop = DefenseContract().loop("l-per", beta="1000", clip_value="0.01")
    largest = []
    step = loop.step

    def recorded():
        largest.append(max(p.grad.abs().max().item() for p in loop.model.parameters()))
        step()

    monkeypatch.setattr(loop, "step", recorded)
    loop.defense.train_step(next(loop.shuffled()), loop)
    assert largest == [pytest.approx(0.01)]


def test_the_attack_leaves_no_gradient():
    loop = DefenseContract().loop("l-per-at")
    batch = next(loop.shuffled())
    loop.defense.attacked(batch.x, batch.y, loop)
    assert all(p.grad is None for p in loop.model.parameters())


@pytest.mark.slow
def test_it_pushes_the_hyperplanes_away():
    loop = DefenseContract().loop("l-per", epochs="10", beta="1", crop="0", lr="0.01")
    batch = loop.split.take(torch.arange(40))

    def penalty():
        with torch.no_grad():
            return regulariser(
                loop.model, batch.x, batch.y, loop.threat, x=batch.x, alpha=0.45, nearest=4, intermediate="linear"
            ).mean()

    before = penalty()
    loop.run()
    assert penalty() < 0.8 * before


@pytest.mark.parametrize(
    "settings", [{"nearest": 0}, {"subsample": 0}, {"beta": -1}, {"warm_up": 2}, {"clip_value": 0}, {"step_size": 0}]
)
def test_refuses_settings_without_a_meaning(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Config(**settings)
