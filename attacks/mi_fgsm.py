"""The momentum iterative fast gradient sign method (Dong et al., 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import per_example
from attacks.losses import cross_entropy
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel


@registry.attack("mi-fgsm")
@dataclass(frozen=True, kw_only=True)
class MIFGSM(Attack):
    """Steps along the sum of the gradients, each divided by its L1 norm; returns the last iterate.

    Dong et al. (2018), Algorithm 1. The step is the sign of the sum (Linf), or the sum divided by its L2 norm (L2).
    """

    steps: int = 10  # gradient steps
    alpha: Length | None = None  # step size; none: eps / steps
    decay: float = 1.0  # mu: 0 forgets earlier gradients, 1 adds them up

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay < 0:
            raise UserError(f"mi-fgsm: decay is {self.decay:g}; it must be 0 or more")

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        alpha = torch.as_tensor(in_units(self.alpha or OfEps(1 / self.steps), threat.eps), device=batch.x.device)
        alpha, project = per_example(alpha, batch.x), threat.projector(batch.x)
        x_adv, momentum = batch.x, torch.zeros_like(batch.x)
        for _ in range(self.steps):
            x_adv = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(x_adv), batch.y).sum(), x_adv)
            size = per_example(torch.linalg.vector_norm(gradient.flatten(1), ord=1, dim=1), gradient)
            momentum = self.decay * momentum + gradient / size.clamp(min=torch.finfo(size.dtype).tiny)  # Eq. 6
            x_adv = project(x_adv.detach() + alpha * threat.steepest(momentum))  # Eq. 7
        return x_adv
