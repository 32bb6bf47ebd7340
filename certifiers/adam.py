"""Adam for many problems at once, of which fewer and fewer are optimised."""

from torch import Tensor, zeros_like

DECAY = 0.98  # of the learning rate, per step
MOMENTS = (0.9, 0.999)


class Adam:
    """Adam (Kingma and Ba, 2015) that ascends, with a learning rate per parameter that falls by DECAY a step.

    attacks/cw.py has its own, whose operations round differently.
    """

    def __init__(self, like: Tensor) -> None:
        self.first, self.second, self.steps = zeros_like(like), zeros_like(like), 0

    def step(self, gradient: Tensor, lr: Tensor) -> Tensor:
        """The update to add to the parameters (n,U), given their gradient and the learning rates, (n,U) each."""
        self.first.mul_(MOMENTS[0]).add_(gradient, alpha=1 - MOMENTS[0])
        self.second.mul_(MOMENTS[1]).addcmul_(gradient, gradient, value=1 - MOMENTS[1])
        falling = DECAY**self.steps
        self.steps += 1
        scale = falling * (1 - MOMENTS[1] ** self.steps) ** 0.5 / (1 - MOMENTS[0] ** self.steps)
        return scale * lr * self.first / (self.second.sqrt() + 1e-12)

    def keep(self, rows: Tensor) -> None:
        """Drop the problems that are not in `rows` (m,)."""
        self.first, self.second = self.first[rows], self.second[rows]
