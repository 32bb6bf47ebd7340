"""The shortest single gradient step that changes the prediction (lazy-training.txt)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.losses import margin
from attacks.minimum_norm import Nearest, column, dual_norm, fooled
from attacks.pgd import direction
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.passes import on_rows

FIRST, GROWTH = 0.1, 1.1  # the smallest size tried, of the one that a linear model needs; each next one to the last


@registry.attack("single-step")
@dataclass(frozen=True, kw_only=True)
class SingleStep(Attack):
    """One step down the margin's gradient at the clean image, with the smallest step size that changes the prediction.

    "Adversarial robustness is at odds with lazy training" (2022), section 5.1: along the gradient (L2); here also along
    its sign (Linf). The size is searched upwards on a grid of `steps` sizes, a tenth apart, then between the last right
    and the first wrong one by `halvings` bisections. With two classes this is the paper's step, and exact on a linear
    model; with more, the margin's gradient points at the most likely wrong class, and so may miss a nearer one.
    """

    minimum_norm = True

    steps: int = 100
    halvings: int = 10

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        nearest = Nearest(model, batch, self.threat)
        if len(nearest.rows):
            self._search(model, nearest)
        return nearest.finish(model, halvings=0)

    def _search(self, model: nn.Module, nearest: Nearest) -> None:
        rows = nearest.rows
        x, y = nearest.x[rows].requires_grad_(), nearest.y[rows]
        with on_rows(rows):
            lead = margin(model(x), y)
            (gradient,) = torch.autograd.grad(lead.sum(), x)
        x, down = x.detach(), -direction(gradient, "sign" if self.threat.norm == "Linf" else "l2")
        size = FIRST * lead.detach() / dual_norm(gradient, self.threat.norm)
        right, wrong = torch.zeros_like(size), torch.full_like(size, torch.inf)
        live = torch.arange(len(rows), device=rows.device)
        for _ in range(self.steps):
            if len(live) == 0:
                break
            x_adv = nearest.clamp(x[live] + column(size[live], x) * down[live])
            with on_rows(rows[live]), torch.no_grad():
                flipped = fooled(model(x_adv), y[live])
            nearest.see(x_adv, flipped, rows[live])
            wrong[live[flipped]] = size[live[flipped]]
            live = live[~flipped]
            right[live] = size[live]
            size[live] *= GROWTH
        done = wrong.isfinite()
        x, down = x[done], down[done]
        path = lambda t: nearest.clamp(x + column(t, x) * down)  # noqa: E731
        nearest.bisect(model, path, right[done], wrong[done], rows[done], self.halvings)
