"""How fast PGD leaves a local minimum of the loss of a CNN on MNIST, by input scale (Deng et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.losses import cross_entropy
from bench.core import seeds
from bench.core.errors import CheckError
from bench.core.threat import ThreatModel
from bench.datasets.load import load_arrays
from bench.models.build import build_model

CPU = torch.device("cpu")
HALVINGS, EACH = 6, 10  # halvings of the step size in the search of an optimum, and steps of each size
AWAY = 0.01  # of eps: distance from the local minimum at which a trajectory starts
RATIO, BATCH, LR, STEPS = 0.1, 50, 0.02, 5  # of adversarial training (ours): eps / mean |x|, batch, SGD, steps of PGD


@dataclass(frozen=True)
class Images:
    """Images x (N,1,28,28) in [0, 1], before scaling, and labels y (N,)."""

    x: Tensor
    y: Tensor


def mnist(data_dir: str | None, n: int) -> Images:
    arrays = load_arrays("mnist", Path(data_dir) if data_dir else None)
    x = torch.from_numpy(arrays.x_train[:n]).float().permute(0, 3, 1, 2) / 255
    return Images(x, torch.from_numpy(arrays.y_train[:n]))


def random_cnn(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "first-order", "cnn"))
        return build_model("cnn", (1, 28, 28), 10).eval()


def radius(x: Tensor, ratio: float) -> ThreatModel:
    """The L2 ball of eps = ratio * mean |x| (section 1)."""
    return ThreatModel("L2", float(ratio * x.flatten(1).norm(dim=1).mean()), None)


def escapes(
    model: nn.Module, images: Images, scale: float, ratio: float, *, eta: float, steps: int, seed: int
) -> Tensor:
    """The progress of PGD with raw steps eta from near a local minimum of each image's loss: (steps + 1, N).

    0 is the loss at the local minimum, which descent from the image finds; 1 is the loss at the local maximum that
    ascent with normalised steps finds from the same start. NaN where the two are equal in double precision.
    """
    x, y = scale * images.x, images.y
    threat = radius(x, ratio)
    assert isinstance(threat.eps, float)
    generator = seeds.generator(CPU, seed, "first-order", "escapes")

    def optimum(start: Tensor, sign: Literal[-1, 1]) -> Tensor:
        for k in range(HALVINGS):
            alpha = sign * threat.eps * 0.5**k
            start = ascend(model, x, y, threat=threat, steps=EACH, alpha=alpha, start=start, step="l2")
        return start

    lowest = optimum(x, -1)
    start = threat.project(lowest + AWAY * threat.random_delta(x, generator).to(x.dtype), x)
    losses = list[Tensor]()
    ascend(
        model, x, y, threat=threat, steps=steps + 1, alpha=eta, start=start, step="raw",
        visit=lambda _, logits: losses.append(cross_entropy(logits.double(), y).detach()),
    )  # fmt: skip
    highest = optimum(start, 1)
    with torch.no_grad():
        low, high = (cross_entropy(model(point).double(), y) for point in (lowest, highest))
    return (torch.stack(losses) - low) / torch.where(high > low, high - low, torch.nan)


def train_adversarially(model: nn.Module, images: Images, scale: float, *, epochs: int, seed: int) -> None:
    """PGD adversarial training on scaled images, in place: eps = 0.1 mean |x|, SGD with momentum 0.9."""
    x, y = scale * images.x, images.y
    threat = radius(x, RATIO)
    assert isinstance(threat.eps, float)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    generator = seeds.generator(CPU, seed, "first-order", "training")
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(BATCH):
            x_adv = ascend(
                model, x[rows], y[rows], threat=threat, steps=STEPS, alpha=threat.eps / 2, start=x[rows], step="l2"
            )
            optimizer.zero_grad()
            loss = cross_entropy(model(x_adv), y[rows]).mean()
            if not loss.isfinite():
                raise CheckError(f"the adversarial training of figure 3 diverged: its loss is {loss.item()}")
            loss.backward()
            optimizer.step()
    model.zero_grad()
