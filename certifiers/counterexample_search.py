"""The search for counterexamples in a complete certifier: the images themselves, and a few steps of gradient ascent."""

import torch
from torch import Tensor, nn

from bench.core.contracts import Batch
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel

CLEAR = 1e-5  # of the largest logit: a witness's negative margin, so that it is misclassified on any machine
STEPS = 20  # of gradient ascent towards one class
SHRINK = 0.75  # the step size's factor from step to step


class CounterexampleSearch:
    """The examples of a batch that are `broken` (B,): `witness` (B,C,H,W) is classified as `answer` (B,).

    starts: the points (B,C,H,W) from which `ascend` is worth trying.
    """

    def __init__(self, model: nn.Module, batch: Batch, threat: ThreatModel) -> None:
        self.model, self.batch, self.threat = model, batch, threat
        self.broken = torch.zeros_like(batch.y, dtype=torch.bool)
        self.witness, self.answer = batch.x.clone(), batch.y.clone()
        self.starts = [batch.x] if batch.worst_points is None else [batch.x, batch.worst_points]

    def unbroken(self) -> Tensor:
        """The rows (b,) that are not broken."""
        return (~self.broken).nonzero().squeeze(1)

    def check_starts(self) -> None:
        """Evaluate the images, and the points that attacks have found."""
        for start in self.starts:
            rows = self.unbroken()
            self.check(start[rows], rows)

    def check(self, points: Tensor, rows: Tensor) -> None:
        """Evaluate points (b,C,H,W) for some rows (b,) of the batch."""
        if len(rows) == 0:
            return
        points = self.threat.of(rows).project(points, self.batch.x[rows])
        with on_rows(rows):
            self._record(points, self.model(points), rows)

    def ascend(self, points: Tensor, rows: Tensor, other: int, *, step: float) -> None:
        """Steepest ascent towards one class, with steps of `step` eps at first; broken examples stop."""
        points = self.threat.of(rows).project(points, self.batch.x[rows])
        for k in range(STEPS):
            if len(rows) == 0:
                return
            x, y, threat = self.batch.x[rows], self.batch.y[rows], self.threat.of(rows)
            points.requires_grad_()
            with on_rows(rows), torch.enable_grad():
                logits = self.model(points)
                lead = logits[:, other] - logits.gather(1, y[:, None])[:, 0]
                (gradient,) = torch.autograd.grad(lead.sum(), points)
            points = points.detach()
            self._record(points, logits.detach(), rows)
            length = (step * SHRINK**k * threat.eps_like(x)).to(x.dtype)
            points = threat.project(points + length * threat.steepest(gradient), x)
            unbroken = ~self.broken[rows]
            points, rows = points[unbroken], rows[unbroken]
        self.check(points, rows)

    def _record(self, points: Tensor, logits: Tensor, rows: Tensor) -> None:
        """Store the first point of each example that is clearly misclassified; rows (b,) may repeat."""
        lead = logits.amax(dim=1) - logits.gather(1, self.batch.y[rows][:, None])[:, 0]
        found = (lead > CLEAR * logits.abs().amax(dim=1)).nonzero().squeeze(1)
        broken, example = rows[found].unique(return_inverse=True)
        first = torch.full_like(broken, len(points)).scatter_reduce(0, example, found, "amin")  # point of each example
        self.broken[broken] = True
        self.witness[broken] = points[first]
        self.answer[broken] = logits.argmax(dim=1)[first]
