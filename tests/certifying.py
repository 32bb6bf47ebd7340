"""Certifiers for tests: exact ones for linear models, and incorrect ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.core.contracts import Batch, Certificate, Certifier
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.core.time_limit import seconds_left
from tests.linear import exact_margin

calls: list[tuple[str, list[int], Tensor | None]] = []  # who certified which examples, given which worst points


@dataclass(frozen=True, kw_only=True)
class Exact(Certifier):
    """The exact margin of a linear model if no ball meets the box; certifies margins above `least`."""

    least: float = 0.0

    def check_fits(self, model, shape, threat):
        super().check_fits(model, shape, threat)
        if not isinstance(model[-1], nn.Linear) or len(model) != 2:
            raise UserError(f"{type(self).__name__} takes linear models only")

    def certify(self, model, batch, threat, *, generator):
        calls.append((type(self).__name__, batch.index.tolist(), batch.worst_points))
        margin = exact_margin(model, batch, threat)
        certified = margin > self.least
        return Certificate(threat.eps * certified, certified, margins=margin[:, None].expand(-1, 2), tolerance=1e-6)


@dataclass(frozen=True, kw_only=True)
class Slow(Exact):
    """Advances `clock`, which tests may use instead of the machine's, by `pause` for each batch."""

    pause: float = 0.05

    def certify(self, model, batch, threat, *, generator):
        limits.append(seconds_left())
        clock.now += self.pause
        return super().certify(model, batch, threat, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Searching(Exact):
    """Needs three more sub-problems for each further example, from one on: index i is certified with 1 + 3 i nodes."""

    nodes: int = 1000

    def certify(self, model, batch, threat, *, generator):
        limits.append(self.nodes)
        found = super().certify(model, batch, threat, generator=generator)
        needed = 1 + 3 * batch.index
        certified = found.certified & (needed <= self.nodes)
        return Certificate(threat.eps * certified, certified, nodes=needed.clamp(max=self.nodes))


class Clock:
    """A clock that only Slow advances."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


clock = Clock()
limits: list[float] = []  # the seconds that were left to Slow, and the nodes that Searching had


@dataclass(frozen=True, kw_only=True)
class Complete(Exact):
    """Decides every example: certified, or broken by the worst point of the ball."""

    def certify(self, model, batch, threat, *, generator):
        calls.append((type(self).__name__, batch.index.tolist(), batch.worst_points))
        margin = exact_margin(model, batch, threat)
        return Certificate(
            threat.eps * (margin > 0), margin > 0, broken=margin < 0, witness=worst_points(model, batch, threat)
        )


@dataclass(frozen=True, kw_only=True)
class Liar(Certifier):
    """Certifies every correctly classified example."""

    def certify(self, model, batch, threat, *, generator):
        correct = model(batch.x).argmax(dim=1) == batch.y
        return Certificate(threat.eps * correct, correct)


@dataclass(frozen=True, kw_only=True)
class Smooth(Certifier):
    """Certifies another classifier, which always predicts `answer`."""

    kind = "probabilistic"

    answer: int = 0

    def certify(self, model, batch, threat, *, generator):
        answer = torch.full_like(batch.y, self.answer)
        return Certificate(2 * threat.eps * (answer == batch.y), answer == batch.y, prediction=answer)


def worst_points(model: nn.Sequential, batch: Batch, threat: ThreatModel) -> Tensor:
    """For each example, the corner of the Linf ball with the lowest margin."""
    weight = model[1].weight
    corners = batch.x[:, None] + threat.eps * (weight[None] - weight[batch.y][:, None]).sign().reshape(
        len(batch), len(weight), *batch.x.shape[1:]
    )
    logits = model(corners.flatten(0, 1)).reshape(len(batch), len(weight), -1)
    ahead = torch.stack([logits[:, j, j] for j in range(len(weight))], dim=1) - logits.gather(
        2, batch.y[:, None, None].expand(-1, len(weight), 1)
    ).squeeze(2)
    ahead.scatter_(1, batch.y[:, None], -torch.inf)
    return threat.project(corners[torch.arange(len(batch)), ahead.argmax(dim=1)], batch.x)
