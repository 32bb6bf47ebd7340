import pytest
import torch

from attacks.fosc import fosc
from bench.core.threat import NORMS, ThreatModel

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand((5, 1, 2, 3), generator=GENERATOR)
GRADIENT = torch.randn((5, 1, 2, 3), generator=GENERATOR)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_it_bounds_every_point_and_is_reached(norm, box):
    """The best point for a linear function is the steepest one; none sampled is better."""
    threat = ThreatModel(norm, 0.4, box)
    at = threat.random_start(X, GENERATOR)
    value = fosc(at, X, GRADIENT, threat)
    inner = lambda x: ((x.double() - at.double()) * GRADIENT.double()).flatten(1).sum(dim=1)  # noqa: E731
    for _ in range(100):
        assert (inner(threat.random_start(X, GENERATOR)) <= value + 1e-6).all()
    if box is None or norm == "Linf":
        best = threat.project(X + 1e4 * threat.steepest(GRADIENT), X)
        assert torch.allclose(inner(best), value, atol=1e-4)
        assert torch.allclose(fosc(best, X, GRADIENT, threat), torch.zeros(5).double(), atol=1e-4)


def test_each_example_has_its_own_radius():
    threat = ThreatModel("L2", torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), None)
    norms = GRADIENT.flatten(1).norm(dim=1).double()
    assert torch.allclose(fosc(X, X, GRADIENT, threat), threat.eps.double() * norms)
