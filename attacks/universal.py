"""One perturbation for many images (Moosavi-Dezfooli et al., 2017; Shafahi et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacks.losses import cross_entropy
from attacks.pgd import direction
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.specs import Length, OfEps, in_units


@registry.attack("universal")
@dataclass(frozen=True, kw_only=True)
class Universal(Attack):
    """One perturbation for all images of a batch, up their mean clipped cross entropy. Shafahi et al. (2020).

    Projected steps (of the sign under Linf, of the normalised gradient under L2) on one delta that every image of the
    call shares before it is clamped to the box; kept is the delta that fooled the most images, the last included.
    Deviation: delta is fitted to the very images that it is tried on, batch by batch, and not to other data, so this
    is how far one perturbation can go on them and nothing about unseen images; larger batches make it weaker.
    """

    steps: int = 100
    alpha: Length = OfEps(0.05)
    clip: float = 9.0  # beta: above this an image's loss no longer counts, so that delta turns to the others

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.threat.eps, Tensor):
            raise UserError("universal makes one perturbation for all images, so that it takes one eps for all")
        if self.clip <= 0:
            raise UserError(f"universal: clip is {self.clip:g}; it must be positive, as cross entropies are")

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        x, y = batch.x, batch.y
        ball = replace(self.threat, box=None)
        centre = torch.zeros_like(x[:1])
        alpha = in_units(self.alpha, self.threat.eps)
        delta, best, most = centre, centre, -1
        for step in range(self.steps + 1):
            delta = delta.detach().requires_grad_()
            logits = model(self._shift(x, delta))
            fooled = int((logits.argmax(dim=1) != y).sum())
            if fooled > most:
                most, best = fooled, delta.detach()
            if fooled == len(y) or step == self.steps:
                break
            loss = cross_entropy(logits, y).clamp(max=self.clip).sum()
            (gradient,) = torch.autograd.grad(loss, delta)
            towards = direction(gradient, "sign" if self.threat.norm == "Linf" else "l2")
            delta = ball.project(delta.detach() + alpha * towards, centre)
        return self._shift(x, best)

    def _shift(self, x: Tensor, delta: Tensor) -> Tensor:
        return x + delta if self.threat.box is None else (x + delta).clamp(*self.threat.box)
