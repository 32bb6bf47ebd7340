import pytest
import torch

from attacks.apgd import APGDCE, APGDDLR, APGDT, auto_pgd, checkpoints
from attacks.losses import TargetedDLR, best_other_class, cross_entropy, dlr, loss_of, margin
from attacks.malt import MALT, nearest_classes
from bench.core import seeds
from bench.core.errors import UserError
from bench.core.passes import AttackPasses, count_passes
from bench.core.threat import ThreatModel
from bench.testing.contracts import tiny_batch, tiny_model
from tests.linear import eps_that_breaks_half, exact_margin, interior_batch, linear_model, near_the_boundary

CPU = torch.device("cpu")
SHAPES = [(1, 5, 5), *(pytest.param(shape, marks=pytest.mark.slow) for shape in [(1, 1, 2), (3, 32, 32)])]


def broken_by(attack, threat, model, batch):
    x_adv = attack(model, batch, threat, generator=seeds.generator(CPU, 0))
    with torch.no_grad():
        return margin(model(x_adv), batch.y) < 0


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("attack", "classes"),
    [(APGDCE, 2), (MALT, 2), (MALT, 5), pytest.param(APGDT, 5, marks=pytest.mark.slow)],
    ids=["ce-2", "malt-2", "malt-5", "t-5"],
)
def test_breaks_exactly_the_examples_of_negative_margin(attack, classes, shape, norm):
    model = linear_model(shape, classes)
    batch = near_the_boundary(model, shape)
    threat = ThreatModel(norm, eps_that_breaks_half(model, batch, norm))
    exact = exact_margin(model, batch, threat)
    gaps = exact_margin(model, batch, ThreatModel(norm, 1e-9))
    clear = exact.abs() > 0.01 * gaps  # eps within 1 % of what is needed
    made = attack() if attack is not MALT else MALT(steps=100, targets=classes - 1)
    assert torch.equal(broken_by(made, threat, model, batch)[clear], (exact < 0)[clear])
    assert 5 <= int((exact < 0).sum()) <= 15


def test_the_ratio_ignores_scale_and_shift():
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 5.0, 1.0]])
    y, target = torch.tensor([0, 1]), torch.tensor([1, 2])
    assert dlr(logits, y).tolist() == pytest.approx([-2 / 3, 3 / 4])
    assert TargetedDLR(target)(logits, y).tolist() == pytest.approx([-2 / 3.5, 3 / 4.5])
    for loss in (dlr, TargetedDLR(target)):
        assert torch.allclose(loss(10 * logits + 7, y), loss(logits, y), atol=1e-6)


@pytest.mark.parametrize(("attack", "classes"), [(APGDDLR, 2), (APGDT, 3)])
def test_too_few_classes_are_a_user_error(attack, classes):
    with pytest.raises(UserError, match=f"not {classes}"):
        attack().check_fits(ThreatModel("Linf", 0.1), (1, 5, 5), classes)


def test_malt_with_the_ratio_needs_four_classes():
    with pytest.raises(UserError, match="loss=gap"):
        MALT(loss="dlr").check_fits(ThreatModel("Linf", 0.1), (1, 5, 5), 3)


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_returns_the_point_of_the_highest_loss_and_that_loss(norm):
    model, batch = tiny_model().eval(), tiny_batch()
    threat = ThreatModel(norm, 0.01)  # too little to break anything
    seen = []
    model.register_forward_hook(lambda *call: seen.append(cross_entropy(call[2], batch.y).detach()))
    found, best_loss = auto_pgd(model, batch.x, batch.y, threat=threat, steps=12, loss=cross_entropy, start=batch.x)
    last_ball = seen[-5:] if norm == "L1" else seen  # four steps, and the start
    with torch.no_grad():
        assert torch.allclose(cross_entropy(model(found), batch.y), best_loss, atol=1e-6)
    assert torch.allclose(torch.stack(last_ball).amax(dim=0), best_loss, atol=1e-6)


def test_the_step_size_is_halved_if_the_loss_does_not_increase():
    """On a hill of one pixel the first steps of 2 eps jump from end to end; only shorter ones find the top."""

    def hill(logits, y):
        return -(logits[:, 0] - 0.37).abs()

    model = torch.nn.Flatten()
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    threat = ThreatModel("Linf", 0.25)
    x[..., 1] = 0.0  # so that class 0 is always right
    start = torch.tensor([[[[0.7, 0.0]]]])
    best_losses = [
        auto_pgd(model, x, y, threat=threat, steps=steps, loss=hill, start=start)[1].item() for steps in (5, 100)
    ]
    assert best_losses[1] > -0.005
    assert best_losses[0] < -0.02


@pytest.mark.parametrize("steps", [5, 20, 100])
def test_checkpoints_are_those_of_the_authors_code(steps):
    """Replays the counters of autopgd_base.py."""
    interval, smallest, decrease = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    expected, since = [], 0
    for step in range(1, steps + 1):
        since += 1
        if since == interval:
            expected.append(step)
            since, interval = 0, max(interval - decrease, smallest)
    assert list(checkpoints(steps)) == expected


@pytest.mark.parametrize("steps", [3, 5, 15, 100])
def test_the_balls_under_l1_share_the_steps(steps):
    model, batch = tiny_model().eval(), tiny_batch()
    threat = ThreatModel("L1", 1e-4)
    with count_passes(model, AttackPasses(batch.x, batch.y, threat)) as seen:
        APGDCE(steps=steps)(model, batch, threat, generator=seeds.generator(CPU, 0))
    assert (seen.total() == 2 * steps + 3).all()  # and a last look at each ball


def test_under_l1_there_is_a_step_for_each_ball():
    with pytest.raises(UserError, match="steps is 2; under L1"):
        APGDCE(steps=2).check_fits(ThreatModel("L1", 1.0), (1, 5, 5), 10)


def test_broken_examples_cost_no_more_passes():
    model = linear_model((1, 5, 5), 2)
    batch = near_the_boundary(model, (1, 5, 5))
    threat = ThreatModel("Linf", 0.99 * eps_that_breaks_half(model, batch, "Linf"))
    broken = exact_margin(model, batch, threat) < 0
    assert 0 < broken.sum() < 20
    with count_passes(model, AttackPasses(batch.x, batch.y, threat)) as seen:
        APGDCE(steps=50)(model, batch, threat, generator=seeds.generator(CPU, 0))
    spent = seen.total()
    assert (spent[~broken] == 101).all()  # 50 steps, and a last look without a gradient
    assert (spent[broken] < 60).all()
    assert (seen.passes_until_broken[broken] <= spent[broken]).all()
    assert (seen.passes_until_broken[broken] > 0).all()


def test_restarts_attack_only_unbroken_examples():
    model = linear_model((1, 5, 5), 5)
    batch = near_the_boundary(model, (1, 5, 5))
    threat = ThreatModel("Linf", eps_that_breaks_half(model, batch, "Linf"))
    with count_passes(model, AttackPasses(batch.x, batch.y, threat)) as seen:
        x_adv = APGDT(steps=20, targets=2)(model, batch, threat, generator=seeds.generator(CPU, 0))
    robust = margin(model(x_adv), batch.y) >= 0
    assert (seen.total()[robust] == 1 + 2 * 41 + 1).all()  # the order of the classes, two runs, a look between


def test_the_likeliest_wrong_class_is_the_first_target():
    model, batch = tiny_model().eval(), tiny_batch()
    (first,) = APGDT(targets=1).losses(model, batch)
    rows = torch.tensor([0, 3, 4])
    logits = model(batch.x[rows])
    likeliest = best_other_class(logits, batch.y[rows]).indices
    assert torch.equal(loss_of(first, rows)(logits, batch.y[rows]), TargetedDLR(likeliest)(logits, batch.y[rows]))


def test_under_l1_an_example_broken_only_in_a_larger_ball_is_robust():
    model = linear_model((1, 5, 5), 2)
    batch = near_the_boundary(model, (1, 5, 5))
    eps = float(eps_that_breaks_half(model, batch, "L1")) / 2
    inside, beyond = (exact_margin(model, batch, ThreatModel("L1", far)) for far in (eps, 3 * eps))
    between = (inside > 1e-3) & (beyond < -1e-3)
    assert between.any()
    threat = ThreatModel("L1", eps)
    found, best_loss = auto_pgd(model, batch.x, batch.y, threat=threat, steps=60, loss=cross_entropy, start=batch.x)
    assert best_loss[between].isfinite().all()
    assert threat.contains(threat.project(found, batch.x), batch.x).all()
    with torch.no_grad():
        reached = margin(model(found), batch.y)[between].double()
    assert torch.allclose(reached, inside[between], atol=1e-3)  # they went on to the best point of the ball itself


def test_the_nearest_classes_of_a_linear_model_are_exact():
    model = linear_model((1, 5, 5), 6)
    batch = interior_batch(model, (1, 5, 5), 8)
    weight = model[1].weight.detach()
    with torch.no_grad():
        logits = model(batch.x)
    for norm, order in (("Linf", 1), ("L2", 2), ("L1", torch.inf)):
        found = nearest_classes(model, batch.x, batch.y, ThreatModel(norm, 0.1))
        for row in range(8):
            y = int(batch.y[row])
            others = [k for k in range(6) if k != y]
            far = {k: float((logits[row, y] - logits[row, k]) / (weight[y] - weight[k]).norm(p=order)) for k in others}
            assert found[row].tolist() == sorted(others, key=far.__getitem__)


def test_malt_attacks_all_targets_at_once_if_few_examples_are_left():
    model, batch = tiny_model().eval(), tiny_batch()
    shown = []
    model.register_forward_hook(lambda *call: shown.append(len(call[2])))
    MALT(steps=2, targets=3, restarts=2)(model, batch, ThreatModel("L2", 1e-4), generator=seeds.generator(CPU, 0))
    assert shown == [6, 6, 36, 36, 36]  # the classes, their distances, then 6 examples x 3 targets x 2 restarts
