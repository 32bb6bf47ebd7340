"""The shortest single gradient step that changes the prediction (Wang et al., 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import per_example
from attacks.losses import margin
from attacks.minimum_norm import NearestAdversarial, clearly_misclassified, signed_distance
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel

FIRST, GROWTH = 0.1, 1.1  # first step size, relative to the one that a linear model needs; ratio of successive sizes


@registry.attack("single-step")
@dataclass(frozen=True, kw_only=True)
class SingleStep(Attack):
    """One step down the margin's gradient at the clean image, with the smallest step size that changes the prediction.

    "Adversarial robustness is at odds with lazy training" (2022), section 5.1: along the gradient (L2); here also along
    its sign (Linf). The step size increases by a tenth, at most `steps` times, until the prediction changes; then
    `halvings` bisections follow. With two classes this is the paper's step, exact on a linear model. With more, the
    margin's gradient points to the most likely incorrect class, and can miss a nearer one.
    """

    minimum_norm = True

    steps: int = 100  # increases of the step size, at most
    halvings: int = 10  # bisections between the adversarial point and the image

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        nearest = NearestAdversarial(model, batch, threat)
        rows = nearest.rows
        if len(rows) == 0:
            return nearest.point
        x, y = nearest.x[rows].requires_grad_(), nearest.y[rows]
        with on_rows(rows):
            margins = margin(model(x), y)
            (gradient,) = torch.autograd.grad(margins.sum(), x)
        x, descent = x.detach(), -threat.steepest(gradient)
        size = signed_distance(FIRST * margins.detach(), gradient, threat)
        largest_correct, smallest_adversarial = torch.zeros_like(size), torch.full_like(size, torch.inf)
        active = torch.arange(len(rows), device=rows.device)
        for _ in range(self.steps):
            if len(active) == 0:
                break
            x_adv = threat.clamp(x[active] + per_example(size[active], x) * descent[active])
            with on_rows(rows[active]), torch.no_grad():
                adversarial = clearly_misclassified(model(x_adv), y[active])
            nearest.update(x_adv, adversarial, rows[active])
            smallest_adversarial[active[adversarial]] = size[active[adversarial]]
            active = active[~adversarial]
            largest_correct[active] = size[active]
            size[active] *= GROWTH
        broken = smallest_adversarial.isfinite()
        x, descent, low, high = (t[broken] for t in (x, descent, largest_correct, smallest_adversarial))
        path = lambda t: threat.clamp(x + per_example(t, x) * descent)  # noqa: E731
        nearest.bisect(path, low, high, rows[broken], self.halvings)
        return nearest.finish(halvings=0)
