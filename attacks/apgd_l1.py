"""The state of Auto-PGD under L1 (Croce and Hein, 2021, "Mind the box"): sparse steps."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.apgd_state import ApgdState
from attacks.ascent import per_example, without_blocked_pixels

INITIAL_SPARSITY = 0.2  # the share of the pixels that the first steps change
SPARSITY_FACTOR = 1.5  # a step changes this factor fewer pixels than the best perturbation so far
SPARSITY_DECREASE = 0.95  # the step size shrinks if the sparsity decreases by less than this factor


@dataclass(kw_only=True)
class SparseState(ApgdState):
    """Algorithm 1 of Croce and Hein (2021).

    Deviation: the sparsity starts anew in each ball. The authors' code continues with that of the ball's start.
    """

    changed_pixels: Tensor = field(init=False)  # the number of pixels that a step changes
    sparsity: Tensor = field(init=False)  # the number of changed pixels of the best point, at the last checkpoint

    def __post_init__(self) -> None:
        super().__post_init__()
        pixels = self.x[0].numel()
        self.step_size = self.eps
        self.changed_pixels = torch.full_like(self.best_loss, max(INITIAL_SPARSITY * pixels, 1))
        self.sparsity = torch.full_like(self.best_loss, pixels)

    def move(self, project: Callable[[Tensor], Tensor]) -> None:
        self.point = project(self.point + per_example(self.step_size, self.x) * self._direction())

    def adapt(self, step: int, losses: Tensor) -> None:
        if step == 0 or step % max(int(0.04 * self.steps), 1) != 0:
            return
        sparsity = (self.best_point != self.x).flatten(1).sum(dim=1).to(self.x.dtype)
        decreased = sparsity < SPARSITY_DECREASE * self.sparsity
        self.changed_pixels, self.sparsity = (sparsity / SPARSITY_FACTOR).floor().clamp(min=1), sparsity
        smaller = torch.maximum(self.step_size / SPARSITY_FACTOR, self.eps / 10)
        self.step_size = torch.where(decreased, self.eps, smaller)
        self.return_to_best(decreased)

    def _direction(self) -> Tensor:
        """The signs of the `changed_pixels` largest entries of the gradient that the box does not block, of norm 1."""
        gradient = without_blocked_pixels(self.gradient, self.point, self.threat)
        size = gradient.abs().flatten(1)
        smallest = size.sort(dim=1, descending=True).values.gather(1, self.changed_pixels.long()[:, None] - 1)
        signs = (gradient.flatten(1).sign() * (size >= smallest)).reshape(gradient.shape)
        return signs / per_example(signs.abs().flatten(1).sum(dim=1).clamp(min=1), signs)
