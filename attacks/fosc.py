"""How far an attack is from convergence: the first-order stationary condition of Wang et al. (2019)."""

import torch
from torch import Tensor

from bench.core.threat import ThreatModel


def fosc(x_adv: Tensor, x: Tensor, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """max over x' of the threat model of <x' - x_adv, gradient>, for the loss's gradient at x_adv: (B,), float64.

    Zero at a point of the ball from which no direction into the ball increases the loss to first order, positive
    elsewhere. In closed form: eps |g|_dual - <x_adv - x, g>; under Linf each coordinate goes to an end of its interval,
    so the box is taken into account. Under L2 and L1 the box is ignored, and the value is an upper bound.

    x_adv, x, gradient (B, ...); x_adv inside the threat model. Wang et al. (2019), "On the Convergence and Robustness
    of Adversarial Training", Eq. 4.
    """
    g, at, centre = (part.double().flatten(1) for part in (gradient, x_adv, x))
    eps = threat.eps_like(x).reshape(-1, 1)
    if threat.norm == "Linf":
        low, high = threat.clamp(centre - eps), threat.clamp(centre + eps)
        return (torch.where(g > 0, high, low) - at).mul(g).sum(dim=1)
    return eps.squeeze(1) * threat.dual_norm(g) - ((at - centre) * g).sum(dim=1)
