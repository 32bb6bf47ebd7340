"""The attacks that several adversarial trainings share: PGD from a uniform start, and the attack of TRADES."""

import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.losses import kl_from
from bench.core.contracts import mode_of
from bench.core.specs import Length, in_units
from bench.core.threat import ThreatModel


def pgd_from_random_start(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    alpha: Length,
    generator: torch.Generator,
) -> Tensor:
    """The point (B,C,H,W) after `steps` steps of PGD on the cross entropy, from a uniform point of the ball.

    x: images (B,C,H,W). y: labels (B,), or targets (B,K). alpha: the step size, where OfEps is of the threat's eps. All
    steps are taken, with the model in eval mode. Madry et al. (2018).
    """
    start = threat.random_start(x, generator)
    return ascend(model, x, y, threat=threat, steps=steps, alpha=in_units(alpha, threat.eps), start=start)


def gaussian_start(x: Tensor, std: float | Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """Images x (B,C,H,W) plus Gaussian noise of standard deviation `std`, projected onto the threat model."""
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return threat.project(x + std * noise, x)


def trades_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    alpha: Length,
    std: float,
    generator: torch.Generator,
) -> Tensor:
    """The point (B,C,H,W) after `steps` steps on KL(p(x) || p(x')) from Gaussian noise of standard deviation `std`.

    x: images (B,C,H,W). y: labels (B,), which the loss does not use. alpha: the step size, where OfEps is of the
    threat's eps. The model is in eval mode. TRADES, Zhang et al. (2019), Algorithm 1.
    """
    start = gaussian_start(x, std, threat, generator)
    with mode_of(model, training=False), torch.no_grad():
        clean = model(x)
    length = in_units(alpha, threat.eps)
    return ascend(model, x, y, threat=threat, steps=steps, alpha=length, start=start, loss=kl_from(clean))
