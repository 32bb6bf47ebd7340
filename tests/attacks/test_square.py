import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks.losses import margin
from attacks.square import L2Search, LinfSearch, Square, soft_threshold
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.passes import AttackPasses, Passes, count_passes
from bench.core.threat import NORMS, ThreatModel
from bench.testing.contracts import EPS, tiny_batch, tiny_model
from tests.linear import exact_margin, interior_batch, linear_model

CPU = torch.device("cpu")


def run(attack, threat, model, batch, seed=0):
    return attack(model, batch, threat, generator=seeds.generator(CPU, seed))


def margins(model, x, y):
    with torch.no_grad():
        return margin(model(x), y)


def shown_to(model, attack, threat, batch):
    """All points that an attack asks the model about, the clean images first."""
    shown = []
    handle = model.register_forward_hook(lambda *call: shown.append(call[1][0].clone()))
    run(attack, threat, model, batch)
    handle.remove()
    return shown


class Unbreakable(nn.Module):
    """Right everywhere, with a margin that depends on each pixel."""

    def forward(self, x):
        logit = x.flatten(1).square().sum(dim=1)
        return torch.stack([logit + 1, torch.zeros_like(logit)], dim=1)


def images(shape, n=4, seed=0):
    x = (torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed)) * 1.5 - 0.25).clamp(0, 1)
    return Batch(x, torch.zeros(n, dtype=torch.int64), torch.arange(n))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 2), (1, 3, 17), (3, 8, 8), pytest.param((2, 28, 28), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("eps", [0.1, 3.0])
def test_every_point_is_allowed(norm, shape, eps):
    batch, threat = images(shape), ThreatModel(norm, eps)
    shown = shown_to(Unbreakable(), Square(queries=60), threat, batch)
    assert len(shown) == 60
    assert all(threat.contains(x, batch.x).all() for x in shown)


@pytest.mark.parametrize("norm", NORMS)
def test_each_example_may_have_an_eps_of_its_own(norm):
    batch, eps = images((1, 6, 6), n=3), torch.tensor([0.01, 0.1, 1.0])
    threat = ThreatModel(norm, eps)
    shown = shown_to(Unbreakable(), Square(queries=60), threat, batch)
    assert all(threat.contains(x, batch.x).all() for x in shown)
    reached = torch.stack([threat.distance(x, batch.x) for x in shown]).amax(dim=0)
    assert (reached > 0.9 * eps).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_point_of_the_lowest_margin_is_returned(norm):
    batch, model = images((1, 6, 6)), Unbreakable()
    attack, threat = Square(queries=80), ThreatModel(norm, 0.3)
    seen = torch.stack([margins(model, x, batch.y) for x in shown_to(model, attack, threat, batch)[1:]])
    assert torch.allclose(margins(model, run(attack, threat, model, batch), batch.y), seen.amin(dim=0))
    assert (seen.amin(dim=0) < seen[0]).all()


def test_under_linf_a_square_goes_to_the_end_of_the_ball():
    x = 0.3 + 0.4 * torch.rand((5, 2, 9, 9), generator=torch.Generator().manual_seed(0))
    batch, model = Batch(x, torch.zeros(5, dtype=torch.int64), torch.arange(5)), Unbreakable()
    attack = Square(queries=200)
    _, best, *rest = shown_to(model, attack, ThreatModel("Linf", 0.1), batch)
    assert ((best - x).abs() - 0.1).abs().max() < 1e-6  # stripes
    assert torch.equal((best > x)[:, :, :1].expand_as(x), best > x)
    sides = [max(round(math.sqrt(attack._share(query) * 81)), 1) for query in range(2, 200)]
    assert len(set(sides)) > 3
    places = set()
    for point, side in zip(rest, sides, strict=True):
        changed = point != best
        assert changed.flatten(1).any(dim=1).all()
        for i in range(5):
            rows, columns = changed[i].any(dim=0).any(dim=1).nonzero(), changed[i].any(dim=0).any(dim=0).nonzero()
            for extent in (rows, columns):
                assert int(extent.max() - extent.min()) < side
            for channel in range(2):
                moved = (point - best)[i, channel][changed[i, channel]]
                assert (moved.abs() - 0.2).abs().max() < 1e-6 if len(moved) else True
                assert len(moved.sign().unique()) <= 1
            places.add((i, int(rows.min()), int(columns.min())))
        better = margins(model, point, batch.y) < margins(model, best, batch.y)
        best = torch.where(better[:, None, None, None], point, best)
    assert len(places) > 100  # each example has places of its own


def test_windows_reach_every_pixel_and_differ_between_examples():
    search = LinfSearch(ThreatModel("Linf", 0.1), torch.rand(50, 2, 3, 5), torch.Generator().manual_seed(0))
    corners = set()
    for _ in range(20):
        window = search.window(4 / 15)  # 2 x 2
        assert window.shape == (50, 8)
        corners |= {(int(k) // 5, int(k) % 5) for k in window[:, 0]}
        assert torch.equal(window - window[:, :1], torch.tensor([0, 1, 5, 6, 15, 16, 20, 21]).expand(50, -1))
    assert corners == {(i, j) for i in range(2) for j in range(4)}


def test_a_window_that_would_change_nothing_is_turned():
    search = LinfSearch(ThreatModel("Linf", 0.1), torch.rand(40, 1, 4, 4), torch.Generator().manual_seed(0))
    search.point = search.start()
    for _ in range(10):
        assert (search.change(1 / 16) != search.point).any(dim=1).all()


def test_the_schedule_is_the_published_one_scaled_to_the_queries():
    published = [(1, 1), (10, 1), (11, 2), (51, 4), (201, 8), (501, 16), (1001, 32), (2001, 64), (4001, 128)]
    published += [(6001, 256), (8000, 256), (8001, 512), (9999, 512)]
    for query, halved in published:
        assert Square(queries=10_000)._share(query) == 0.8 / halved
        assert Square(queries=20_000, p_init=0.4)._share(2 * query) == 0.4 / halved


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("queries", [1, 2, 25])
def test_the_queries_are_counted_exactly(queries, restarts):
    batch, model = images((1, 6, 6)), Unbreakable()
    for norm in NORMS:
        with count_passes(model, Passes()) as passes:
            run(Square(queries=queries, restarts=restarts), ThreatModel(norm, 0.3), model, batch)
        assert passes.forwards == 4 * (1 + restarts * (queries - 1)) <= 4 * restarts * queries
        assert passes.backwards == 0


@pytest.mark.parametrize("norm", NORMS)
def test_broken_examples_cost_no_more_passes(norm):
    model = linear_model((1, 6, 6), 2)
    batch = interior_batch(model, (1, 6, 6), 30)
    eps = {"Linf": 0.15, "L2": 0.9, "L1": 3.0}[norm] * torch.tensor([1.0, 0.01]).repeat(15)
    threat = ThreatModel(norm, eps)
    with count_passes(model, AttackPasses(batch.x, batch.y, threat)) as seen:
        x_adv = run(Square(queries=100), threat, model, batch)
    broken = margins(model, x_adv, batch.y) < 0
    assert 5 < broken.sum() <= 15
    assert torch.equal(seen.total()[~broken], torch.full((int((~broken).sum()),), 100))
    assert torch.equal(seen.total()[broken], seen.passes_until_broken[broken])
    assert seen.passes_until_broken[broken].max() < 100


@pytest.mark.parametrize("norm", NORMS)
def test_misclassified_images_are_returned_and_cost_one_pass(norm):
    batch, model = images((1, 6, 6)), Unbreakable()
    with count_passes(model, Passes()) as passes:
        x_adv = run(Square(queries=9), ThreatModel(norm, 0.3), model, Batch(batch.x, 1 - batch.y, batch.index))
    assert torch.equal(x_adv, batch.x)
    assert passes.forwards == 4


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "share"), [("Linf", 0.9999), ("L2", 0.8), ("L1", 0.5)])
def test_it_comes_near_the_optimum_of_a_linear_model(norm, share):
    shape = (1, 4, 4)
    model = linear_model(shape, 2)
    batch = interior_batch(model, shape, 20)
    clean = margins(model, batch.x, batch.y)
    threat = ThreatModel(norm, 1e-3)  # so small that none breaks
    found = margins(model, run(Square(queries=1000), threat, model, batch), batch.y)
    best = exact_margin(model, batch, threat)
    right = best > 0
    assert right.sum() > 15
    assert ((clean - found) >= share * (clean - best))[right].all()


@pytest.mark.parametrize("norm", NORMS)
def test_seeds_matter_and_repeat(norm):
    attack = Square(queries=30)
    first, again, other = (
        run(attack, ThreatModel(norm, EPS[norm] / 10), tiny_model(), tiny_batch(), seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_restarts_search_anew():
    batch, model = images((1, 6, 6)), Unbreakable()
    shown = shown_to(model, Square(queries=3, restarts=2), ThreatModel("Linf", 0.1), batch)
    assert not torch.equal(shown[1], shown[3])


def test_nan_logits_do_not_count_as_correct():
    class Silent(nn.Module):
        def forward(self, x):
            return torch.where(x.flatten(1)[:, :1] == 0.5, torch.tensor([1.0, 0.0]), torch.tensor([torch.nan, 0.0]))

    x = torch.full((2, 1, 3, 3), 0.5)
    batch, model = Batch(x, torch.zeros(2, dtype=torch.int64), torch.arange(2)), Silent()
    x_adv = run(Square(queries=5), ThreatModel("Linf", 0.1), model, batch)
    assert margins(model, x_adv, batch.y).isnan().all()


@pytest.mark.parametrize("p_init", [0.0, 1.5])
def test_p_init_is_a_share(p_init):
    with pytest.raises(UserError, match="p_init"):
        Square(p_init=p_init)


def test_the_bumps_are_the_papers():
    """Eq. 2: sum over k from 0 to n - max(|r - h//2 - 1|, |s - w//2 - 1|) of 1/(n+1-k)^2, with r and s from one."""
    search = L2Search(ThreatModel("L2", 1.0), torch.rand(1, 1, 9, 9), torch.Generator())
    for side in (3, 4, 7):
        n, half = side // 2, side // 2

        def bump(r, s, width, n=n):
            most = n - max(abs(r - n - 1), abs(s - width // 2 - 1))
            return sum(1 / (n + 1 - k) ** 2 for k in range(most + 1))

        expected = torch.tensor(
            [
                [bump(r, s, half) if s <= half else -bump(r, s - half, side - half) for s in range(1, side + 1)]
                for r in range(1, side + 1)
            ]
        )
        beside, above = search.bumps(side, side).view(2, side, side)
        assert torch.allclose(beside, expected)
        assert torch.allclose(above, expected.T)


def test_under_l2_a_change_uses_the_whole_budget():
    x = torch.full((8, 3, 7, 7), 0.5)
    search = L2Search(ThreatModel("L2", 0.2), x, torch.Generator().manual_seed(0))
    search.point = search.start()
    assert torch.allclose((search.point - search.x).norm(dim=1), torch.tensor(0.2), rtol=1e-5)
    search.point = search.x + 0.5 * (search.point - search.x)  # three quarters of the mass are unused
    for _ in range(20):
        before, after = search.point - search.x, search.change(9 / 49) - search.x
        assert torch.allclose(after.norm(dim=1), torch.tensor(0.2), rtol=1e-5)
        changed = (before != after).view(8, 3, 7, 7).any(dim=1).flatten(1).sum(dim=1)
        assert (changed <= 2 * 9).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=8), st.floats(0.01, 3))
def test_the_soft_threshold_projects_onto_the_l1_ball(values, eps):
    delta = torch.tensor([values, [0.0] * len(values)], dtype=torch.float64)
    eps = torch.tensor([[eps], [eps]], dtype=torch.float64)
    threat = ThreatModel("L1", eps.flatten(), box=None)
    expected = threat.project(delta, torch.zeros_like(delta))
    assert torch.allclose(soft_threshold(delta, eps), expected, atol=1e-9)
