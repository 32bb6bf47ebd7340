"""Training of two-layer networks that stay near their start, on MNIST's 0 and 1 (lazy-training.txt, section 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from attacks.ascent import ascend, is_misclassified
from attacks.losses import cross_entropy
from attacks.single_step import SingleStep
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.threat import ThreatModel
from bench.datasets.load import load_arrays
from bench.studies.claims import network, output
from bench.training.weight_balls import farthest_neuron, project_neurons

CPU = torch.device("cpu")
LR, BATCH = 0.1, 16  # of SGD: the paper's learning rate, our batch size
LR_AT, BATCH_AT = 1.0, 64  # of adversarial training (ours)
UNBOUNDED = ThreatModel("L2", 1.0, None)  # for the single step, which has no eps


@dataclass(frozen=True)
class Points:
    """Inputs (N,d) float32 and labels (N,) of 0 and 1."""

    x: Tensor
    y: Tensor

    def first(self, n: int) -> Points:
        return Points(self.x[:n], self.y[:n])

    @property
    def dim(self) -> int:
        return self.x.shape[1]


def zeros_and_ones(data_dir: str | None, side: int, *, normalised: bool) -> tuple[Points, Points]:
    """MNIST's images of 0 and 1, averaged to side x side pixels: training and test points of dimension side^2.

    normalised: each image divided by its L2 norm, as in appendix A.
    """
    arrays = load_arrays("mnist", Path(data_dir) if data_dir else None)
    parts = []
    for images, labels in ((arrays.x_train, arrays.y_train), (arrays.x_test, arrays.y_test)):
        keep = labels < 2
        x = torch.from_numpy(images[keep]).float().permute(0, 3, 1, 2) / 255
        x = adaptive_avg_pool2d(x, side).flatten(1)
        x = x / x.norm(dim=1, keepdim=True) if normalised else x
        parts.append(Points(x, torch.from_numpy(labels[keep])))
    return parts[0], parts[1]


class Lazy:
    """A two-layer ReLU network, its initial weights, and the distance that a neuron has moved."""

    def __init__(self, dim: int, width: int, seed: int, *, bias: bool) -> None:
        spec = f"two-layer:width={width}" + ":bias=true" * bias
        self.model, self.width = network(spec, dim, seed, "lazy-regime", dim, width).float(), width
        self.start = self.joined().clone()

    @property
    def stem(self) -> nn.Linear:
        stem = self.model.stem
        assert isinstance(stem, nn.Linear)
        return stem

    def joined(self) -> Tensor:
        """The weights of each neuron, its bias included: (m, d) or (m, d + 1)."""
        return torch.cat([p.detach().reshape(self.width, -1) for p in self.stem.parameters()], dim=1)

    def step(self, x: Tensor, y: Tensor, lr: float) -> None:
        """W <- W - lr grad of the mean logistic loss."""
        parameters = list(self.stem.parameters())
        gradients = torch.autograd.grad(cross_entropy(self.model(x), y).mean(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(lr * gradient)

    def error(self, points: Points) -> float:
        with torch.no_grad():
            return float(is_misclassified(self.model(points.x), points.y).double().mean())


def batches(points: Points, size: int, epochs: int, generator: torch.Generator) -> list[Points]:
    orders = [torch.randperm(len(points.y), generator=generator) for _ in range(epochs)]
    return [Points(points.x[rows], points.y[rows]) for order in orders for rows in order.split(size)]


def train_lazily(net: Lazy, points: Points, *, c0: float, epochs: int, seed: int) -> bool:
    """SGD until a neuron would leave its ball of radius c0 / sqrt(m) (section 5.1); returns whether this ended it."""
    for batch in batches(points, BATCH, epochs, seeds.generator(CPU, seed, "lazy-regime", "sgd")):
        before = [parameter.detach().clone() for parameter in net.stem.parameters()]
        net.step(batch.x, batch.y, LR)
        if farthest_neuron(net.joined(), net.start) > c0 / math.sqrt(net.width):
            with torch.no_grad():
                for parameter, value in zip(net.stem.parameters(), before, strict=True):
                    parameter.copy_(value)
            return True
    return False


@dataclass(frozen=True)
class Steps:
    """The smallest single gradient step that flips the prediction, for each point (N,).

    eta: the step size, infinite if none flips it. gradient: |grad f|. size: norm of the perturbation divided by |x|.
    """

    eta: Tensor
    gradient: Tensor
    size: Tensor


def flipping_steps(net: Lazy, points: Points) -> Steps:
    """The attack `single-step` on the predicted labels, without a box."""
    x = points.x.clone().requires_grad_()
    f = output(net.model, x)
    (gradient,) = torch.autograd.grad(f.sum(), x)
    batch = Batch(points.x, (f > 0).long().detach(), torch.arange(len(points.y)))
    generator = seeds.generator(CPU, 0, "lazy-regime", "single-step")  # the attack does not use it
    x_adv = SingleStep().perturb(net.model, batch, UNBOUNDED, generator=generator)
    with torch.no_grad():
        flipped = is_misclassified(net.model(x_adv), batch.y)
    length = torch.where(flipped, (x_adv - points.x).norm(dim=1), torch.inf)
    norm = gradient.norm(dim=1)
    return Steps(length / norm, norm, length / points.x.norm(dim=1))


def pgd(net: Lazy, points: Points, delta: float, steps: int) -> Tensor:
    """PGD-L2 from the points themselves with step size 2.5 delta / steps (appendix A)."""
    return ascend(
        net.model, points.x, points.y, threat=ThreatModel("L2", delta, None), steps=steps, alpha=2.5 * delta / steps,
        start=points.x,
    )  # fmt: skip


def train_adversarially(
    net: Lazy, points: Points, *, delta: float, radius: float, epochs: int, steps: int, seed: int
) -> None:
    """Algorithm 1 of appendix A: PGD, a step, and a projection of each neuron. Deviation: a fixed number of epochs.

    The paper stops when the robust training accuracy no longer increases.
    """
    for batch in batches(points, BATCH_AT, epochs, seeds.generator(CPU, seed, "lazy-regime", "at")):
        net.step(pgd(net, batch, delta, steps), batch.y, LR_AT)
        project_neurons(net.stem.weight, net.start, radius)


def robust_accuracy(net: Lazy, points: Points, delta: float, steps: int) -> float:
    return 1 - net.error(Points(pgd(net, points, delta, steps), points.y))


def can_change_sign(start: Tensor, x: Tensor, radius: float) -> Tensor:
    """How many neurons with |w_s - w_s0| <= radius can have another sign at x (N,d) than at the start: (N,).

    These are the neurons with |w_s0^T x| <= radius |x| (lemma 4.3 and B.4).
    """
    return ((x @ start.T).abs() <= radius * x.norm(dim=1, keepdim=True)).sum(dim=1)


def sign_change_bound(width: int, c0: float, failure: float) -> float:
    """Lemma B.4 with its constants, for one x and w_s0 from N(0, I): exceeded with probability at most `failure`.

    The expected number is m P(|N(0,1)| <= c0 / sqrt(m)) <= c0 sqrt(2 m / pi); Hoeffding's inequality gives the
    remaining term.
    """
    return c0 * math.sqrt(2 * width / math.pi) + math.sqrt(width * math.log(1 / failure) / 2)
