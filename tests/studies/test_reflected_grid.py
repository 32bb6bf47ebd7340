import itertools
import math
import re
import sys

import pytest
import torch

from attacks.losses import cross_entropy, margin, reflected
from bench.core.errors import UserError
from bench.studies.reflected_loss.reflected_grid import TOP, ReflectedGridStudy, losses, planes, search_grid


def point_by_point(size):
    """(flips the label, losses by name) of each allowed point, with nothing but the paper's formulas."""
    axis = [-0.51 + 1.02 * (i + 0.5) / size for i in range(size)]
    for delta in itertools.product(axis, repeat=3):
        if math.hypot(*delta) > 0.7078:
            continue
        z = [value + d for value, d in zip((3, 2, 1), delta, strict=True)]
        best = max(z[1:])
        yield (
            best > z[0],
            {
                "cross entropy": math.log(sum(math.exp(other - z[0]) for other in z)),
                "reflected: margin": -math.log(1 + math.exp(z[0] - best)),
                "reflected: greedy": best - math.log(sum(math.exp(other) for other in z)),
                "reflected: logits": -math.log(sum(math.exp(z[0] - other) for other in z)),
            },
        )


@pytest.mark.parametrize("size", [7, 20])
def test_the_search_is_brute_force_in_less_memory(size):
    points = list(point_by_point(size))
    result = search_grid(size)
    assert result.points == len(points)
    assert result.flips == sum(flips for flips, _ in points)
    for name, top in result.highest.items():
        best = torch.tensor(sorted((each[name] for _, each in points), reverse=True)[: TOP[-1]])
        assert torch.allclose(top.loss, best.double(), atol=1e-6)


def test_the_losses_are_those_of_the_attacks():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).double()
    y = torch.zeros(50, dtype=torch.int64)
    computed = losses(logits)
    assert torch.allclose(computed["cross entropy"], cross_entropy(logits.T, y))
    assert torch.allclose(computed["reflected: greedy"], reflected(logits.T, y))
    assert torch.allclose(computed["reflected: margin"], -torch.log1p(margin(logits.T, y).exp()))
    assert torch.allclose(computed["reflected: logits"], -cross_entropy(-logits.T, y))


def test_flips_belong_to_the_points_of_the_highest_losses():
    """The smallest grid with label flips: those of the two points nearest to (-0.5, 0.5, 0)."""
    result = search_grid(52)
    assert result.flips == 2
    near = 0.51 / 52
    flipped = losses(torch.tensor([[3 - 51 * near], [2 + 51 * near], [1 - near]], dtype=torch.float64))
    for name, top in result.highest.items():
        there = torch.isclose(top.loss, flipped[name], atol=1e-12, rtol=0)
        assert there.any() == top.flips[there].any() == (name != "reflected: logits")
    assert result.highest["reflected: margin"].flips[:2].all()


def test_only_one_plane_is_in_memory():
    sizes = [logits.shape[1] for logits in planes(30)]
    assert len(sizes) == 30
    assert max(sizes) <= 30**2


def test_the_report_and_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    report = ReflectedGridStudy(size=20, figure=str(tmp_path / "grid.svg")).run()
    assert "20^3 points" in report
    rows = re.findall(r"\| (reflected: \w+|cross entropy) +\|(.*)\|", report)
    assert [name.split()[-1] for name, _ in rows] == ["entropy", "margin", "greedy", "logits"]
    assert all([int(count) for count in counts.split("|")] == [0, 0, 0] for _, counts in rows)
    assert f"figure: {tmp_path / 'grid.svg'}" in report
    assert (tmp_path / "grid.svg").read_text().count("k = 1") == 3


def test_without_a_figure_it_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert "figure" not in ReflectedGridStudy(size=5, figure=None).run().replace("(figure 2", "")
    with pytest.raises(UserError, match=r"robust-bracket\[plots\]"):
        ReflectedGridStudy(size=5).run()


@pytest.mark.parametrize(("options", "hint"), [
    ({"size": 1}, "at least 2"),
    ({"size": 5, "figure": "grid.jpeg"}, "must end in"),
    ({"size": 5, "figure": "nowhere/grid.png"}, "no folder"),
])  # fmt: skip
def test_wrong_use_is_reported_before_anything_is_computed(options, hint):
    with pytest.raises(UserError, match=hint):
        ReflectedGridStudy(**options).run()
