"""Training through intervals up to a layer, and through an attack in their box after it (Mao et al., 2023)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.core import registry
from bench.core.contracts import Trainer, mode_of
from bench.core.rules import positive
from bench.core.shares import in_shares, undivided
from bench.core.specs import in_units
from bench.core.threat import ThreatModel
from bench.training.interval_methods import IntervalConfig, IntervalMethod
from certifiers.input_regions import Region, region_of
from certifiers.interval_bounds import interval_margins, propagate_intervals
from certifiers.linear_forms import margin_specification
from certifiers.margin_certifier import insert_label
from certifiers.network import Network
from certifiers.worst_logits import of_margins


@dataclass(frozen=True, kw_only=True)
class Config(IntervalConfig):
    classifier: int = 1  # activations after the box, the last ones of the network; the attack is before the first
    connector: float = 0.5  # c: share of the box's width within which an attacked point gets the gradient of a side
    weight: float = 5.0  # weight of the gradient of the attacked loss, relative to that of the interval loss

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            classifier=(self.classifier >= 1, "at least 1"),
            connector=(0 < self.connector <= 1, "in (0, 1]"),
            weight=positive(self.weight),
        )


@registry.defense("taps")
class TAPS(IntervalMethod[Config]):
    """TAPS: cross entropy of worst-case logits found by PGD in the box that intervals give before the last activations.

    Mao, Mueller, Fischer and Vechev (2023), Section 3. For each wrong class, PGD with steps of `step_size` radii of the
    box searches the point with the worst margin, from a uniform start. Gradients reach the sides of the box through the
    paper's rectified linear connector. The loss of an example is the product of this loss and that of intervals over
    the whole network; their gradients have the weights 2 alpha and 2 - 2 alpha, alpha / (1 - alpha) = `weight`. eps
    rises linearly; the initial weights are those of Shi et al. (2021), without their regularisers of the warm-up. The
    step size does not shrink, and batch norm is in eval mode in the bounds. Passes of the attack are not counted,
    because they do not start at the image.

    Evidence: digits (small-cnn, Linf 0.2, 200 epochs, 1 seed, 360 test images): clean 86.9, certified 60.3, attacked
    60.6.
    """

    config_class = Config

    def loss(self, x: Tensor, y: Tensor, threat: ThreatModel, trainer: Trainer) -> Tensor:
        model = trainer.model
        with undivided(), mode_of(model, training=False):
            network = Network(model, x[:1])
        size = (len(x), network.classes - 1, *network.nodes[self.cut(network)].shape)
        places = torch.rand(size, generator=trainer.generator, device=x.device)

        def worst_logits(x: Tensor, places: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            with mode_of(model, training=False):
                return self.worst_logits(Network(model, x[:1]), region_of(x, threat), places, y)

        attacked, worst = in_shares(model, worst_logits, x, places, y)
        low, high = (cross_entropy(logits, y, reduction="none") for logits in (attacked, worst))
        alpha = self.config.weight / (1 + self.config.weight)
        return (2 * alpha * low * high.detach() + (2 - 2 * alpha) * high * low.detach()).mean()

    def cut(self, network: Network) -> int:
        """The node whose output the box encloses: the input of the classifier's first activation."""
        count, most = self.config.classifier, len(network.activations)
        self.config.check(classifier=(count <= most, f"at most {most}, as many activations as the network has"))
        node = network.nodes[network.activations[-count]].inputs[0]
        self.config.check(
            classifier=(network.separates(node), "another number: not all paths pass before this activation")
        )
        return node

    def worst_logits(self, network: Network, region: Region, places: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """z_j - z_y of the attacked points, and its upper bounds by intervals: (B,K) each, 0 at the label.

        places (B,K-1,*shape): relative positions in the box, in [0, 1], at which the attacks on the wrong classes
        start.
        """
        node = self.cut(network)
        others, _ = margin_specification(y, network.classes, network.image)

        def margins(points: Tensor) -> Tensor:
            """z_y - z_j (B,K-1) at the point (B,K-1,*shape) of each wrong class j."""
            logits = network.logits_after(node, points.flatten(0, 1)).unflatten(0, others.shape)
            label = y[:, None, None].expand(*others.shape, 1)
            return (logits.gather(2, label) - logits.gather(2, others[..., None])).squeeze(2)

        center, radius = (each[:, None] for each in propagate_intervals(network, region)[node])
        low, high = center - radius, center + radius
        with torch.no_grad():
            points = torch.lerp(low, high, places.to(low.dtype))
        for _ in range(self.config.steps):
            points.requires_grad_()
            (gradient,) = torch.autograd.grad(margins(points).sum(), points)
            step = in_units(self.config.step_size, 1.0) * radius.detach() * gradient.sign()
            points = (points.detach() - step).clamp(low.detach(), high.detach())
        margin = margins(connected(points, low, high, self.config.connector))
        return of_margins(insert_label(margin, others), y), of_margins(interval_margins(network, region, y), y)


def connected(points: Tensor, low: Tensor, high: Tensor, width: float) -> Tensor:
    """Points of the box [low, high], with gradients with respect to its sides: the rectified linear connector.

    The derivative with respect to a side is 1 at this side, falls linearly, and is 0 beyond a share `width` of the
    box's width.
    """
    with torch.no_grad():
        share = ((points - low) / (high - low)).nan_to_num(0.5)  # a box of zero width has no nearer side
        of_low, of_high = (1 - share / width).clamp(min=0), (1 - (1 - share) / width).clamp(min=0)
    return points.detach() + of_low * (low - low.detach()) + of_high * (high - high.detach())
