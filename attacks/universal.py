"""One perturbation for many images (Moosavi-Dezfooli et al., 2017; Shafahi et al., 2020)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacks.losses import cross_entropy
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel


@registry.attack("universal")
@dataclass(frozen=True, kw_only=True)
class Universal(Attack):
    """One perturbation for all images of a batch, maximizing their mean clipped cross entropy. Shafahi et al. (2020).

    Projected steps (the gradient's sign under Linf, the normalised gradient under L2) on one delta, which is added to
    each image and clamped to the box. Returns the delta that breaks the most images. Deviation: delta is fitted to the
    images on which it is evaluated, batch by batch. So it does not measure transfer to unseen images, and is weaker for
    larger batches.
    """

    steps: int = 100  # gradient steps
    alpha: Length = OfEps(0.05)  # step size
    clip: float = 9.0  # beta: images with a larger loss no longer contribute to the gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip <= 0:
            raise UserError(f"universal: clip is {self.clip:g}; it must be positive, as cross entropies are")

    def check_fits(self, threat: ThreatModel, shape: tuple[int, ...], classes: int) -> None:
        super().check_fits(threat, shape, classes)
        _check_one_eps(threat)

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        _check_one_eps(threat)
        x, y = batch.x, batch.y
        ball = replace(threat, box=None)
        zero = torch.zeros_like(x[:1])
        alpha = in_units(self.alpha, threat.eps)
        delta, best, most = zero, zero, -1
        for step in range(self.steps + 1):
            delta = delta.detach().requires_grad_()
            logits = model(threat.clamp(x + delta))
            broken = int((logits.argmax(dim=1) != y).sum())
            if broken > most:
                most, best = broken, delta.detach()
            if broken == len(y) or step == self.steps:
                break
            loss = cross_entropy(logits, y).clamp(max=self.clip).sum()
            (gradient,) = torch.autograd.grad(loss, delta)
            delta = ball.project(delta.detach() + alpha * threat.steepest(gradient), zero)
        return threat.clamp(x + best)


def _check_one_eps(threat: ThreatModel) -> None:
    if isinstance(threat.eps, Tensor):
        raise UserError("universal computes one perturbation for all images; give one eps for all")
