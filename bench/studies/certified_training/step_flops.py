"""`bench study step-flops`: the operations of a training step by depth and width (thesis, Table 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.core import registry, seeds
from bench.core.config import make_config
from bench.core.progress import Progress
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.studies.claims import ClaimsStudy, Findings, Floats, Table, exponent, holds_if
from bench.training.checkpoints import BuildSpec
from bench.training.loop import Loop
from bench.training.rebuild import new_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS, CLASSES = (1, 8, 8), 10  # M = 64, K = 10
BATCH, STEPS = 4, 100  # the step that is measured is the last one, after every warm-up
THREAT = ThreatModel("Linf", 0.1)
ABOVE = 0.15  # how far an exponent of the width may be above that of the table: lower orders count at finite widths


class Powers(NamedTuple):
    """The exponents of the depth L and of the width n in Table 3.4."""

    depth: int
    width: int


TABLE = {
    "pgd-at": Powers(1, 2), "kw": Powers(2, 3), "mmr": Powers(1, 2), "ibp": Powers(1, 2), "crown-ibp": Powers(1, 3),
    "i-per": Powers(1, 2), "l-per": Powers(2, 3),
}  # fmt: skip

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "crown-ibp": {"beta": 0.5},  # the weight of the linear bounds in the end; at the default, 0, they are not computed
}


@dataclass(frozen=True)
class Plan:
    """The sizes of the networks. middle: depth of the first experiment and width of the second one."""

    widths: tuple[int, ...] = (64, 128, 256)
    depths: tuple[int, ...] = (4, 6, 8)
    middle: tuple[int, int] = (4, 64)
    seeds: int = 2


SMALL = Plan()
PAPER = Plan(widths=(128, 256, 512, 1024), depths=(4, 6, 8, 12, 16), middle=(4, 128), seeds=5)


@registry.study("step-flops")
@dataclass(frozen=True, kw_only=True)
class StepFlopsStudy(ClaimsStudy):
    """FLOPs of a training step of adversarial and certified training, by the depth and width of the network.

    Thesis, section 3.3.3, Table 3.4: L-layer networks with n units in each hidden layer, random weights and images of
    64 pixels. FLOPs of matrix products are counted, forward and backward, in one step of a batch at the end of the
    training, when eps is largest. Bounds of stable units are not computed backward, so the counts depend on the
    weights. The table has upper bounds for n much larger than the numbers of inputs and classes. The `mmr` of this
    project computes the planes of units backward, as the linear bounds of KW, which is cheaper for one hidden layer but
    exceeds the table's bound for several; `crown-ibp` bounds the margins only, and stays below n^3.
    """

    def findings(self) -> Findings:
        plan, found = SMALL if self.small else PAPER, Findings(inches=(10, 4))
        depth, width = plan.middle
        by_width = self.measured(plan, [(depth, n) for n in plan.widths])
        by_depth = self.measured(plan, [(layers, width) for layers in plan.depths])
        setting = f"{plan.seeds} seeds, batch of {BATCH}, Linf {THREAT.eps}"
        found.tables.append(table_of(f"FLOPs of a step by width n, L = {depth}, {setting}", "n", plan.widths, by_width))
        title = f"FLOPs of a step by depth L, n = {width}, {setting}"
        found.tables.append(table_of(title, "L", plan.depths, by_depth))
        for name, powers in TABLE.items():
            power = exponent(plan.widths[-2:], by_width[name][:, -2:])
            text = f"exponent {power} from n = {plan.widths[-2]} to {plan.widths[-1]}"
            claim = f"Table 3.4 ({name}): FLOPs grow at most as n^{powers.width}"
            found.claims.append(holds_if(claim, text, power.mean <= powers.width + ABOVE))
            bounds = layers_of_work(plan.depths[-2:], powers.depth)
            growth = by_depth[name][:, -1] / by_depth[name][:, -2]
            claim = f"Table 3.4 ({name}): FLOPs grow at most as L^{powers.depth}"
            text = f"{growth.mean():.3g} times from L = {plan.depths[-2]} to {plan.depths[-1]}, allowed {bounds:.3g}"
            found.claims.append(holds_if(claim, text, bool(growth.mean() <= bounds * (1 + ABOVE))))
        found.draw = partial(draw, plan=plan, by_width=by_width, by_depth=by_depth)
        return found

    def measured(self, plan: Plan, sizes: Sequence[tuple[int, int]]) -> dict[str, Floats]:
        """FLOPs of each method, (seeds, sizes); sizes: (depth, width)."""
        flops = {name: np.empty((plan.seeds, len(sizes))) for name in TABLE}
        with Progress("step-flops", len(TABLE) * plan.seeds * len(sizes), "step") as progress:
            for name, each in flops.items():
                for row, column in np.ndindex(*each.shape):
                    depth, width = sizes[column]
                    each[row, column] = flops_of_step(name, depth, width, seeds.derive(self.seed, "step-flops", row))
                    progress.advance(1, name)
        return flops


def flops_of_step(defense: str, depth: int, width: int, seed: int) -> int:
    """FLOPs of one step of a defense on a batch of random images."""
    target = registry.defense.get(defense)
    settings = {"epochs": 1, "batch_size": BATCH, "probe_every": 0, "crop": 0, "flip": False, "amp": "off"}
    config = make_config(target.config_class, defense, settings, SETTINGS.get(defense, {}))
    hidden = "+".join([str(width)] * (depth - 1))
    spec = BuildSpec(model=f"mlp:hidden={hidden}", shape=INPUTS, classes=CLASSES, defense=None, training={})
    rng = np.random.default_rng(seed)
    channels, height, side = INPUTS
    images = rng.integers(256, size=(BATCH * STEPS, height, side, channels), dtype=np.uint8)
    split = Split(images, rng.integers(CLASSES, size=len(images)), torch.device("cpu"))
    trained = target(config)
    loop = Loop(trained.build(new_model(spec, seed)), trained, split, THREAT, seed=seed)
    loop.steps_done = loop.steps - 1
    batch = next(iter(loop.shuffled()))
    with Flops() as flops, loop.counted(loop.model):
        loop.train_on(batch)
    return flops.total


class Flops(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions, those of backward passes included.

    torch's own FlopCounterMode also tracks modules, and its hooks fail in `torch.autograd.grad`, which attacks use.
    """

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += int(count(*args, **(kwargs or {}), out_val=out))
        return out


def layers_of_work(depths: Sequence[int], power: int) -> float:
    """The growth of the work from the first to the second depth if it is L, or if each layer is pulled through all
    layers before it."""
    first, second = depths
    return second / first if power == 1 else (second - 1) * (second - 2) / ((first - 1) * (first - 2))


def table_of(title: str, name: str, sizes: Sequence[int], flops: dict[str, Floats]) -> Table:
    rows = [(method, *(float(each) for each in values.mean(axis=0))) for method, values in flops.items()]
    return Table(title, ("method", *(f"{name} = {size}" for size in sizes)), rows)


def draw(canvas: Figure, *, plan: Plan, by_width: dict[str, Floats], by_depth: dict[str, Floats]) -> None:
    panels = (("width n", plan.widths, by_width), ("depth L", plan.depths, by_depth))
    for panel, (label, sizes, flops) in enumerate(panels, start=1):
        axes = canvas.add_subplot(1, 2, panel)
        for name, values in flops.items():
            axes.plot(sizes, values.mean(axis=0), marker="o", label=name)
        axes.set(title=f"Table 3.4, {label}", xlabel=label, ylabel="FLOPs of a step", xscale="log", yscale="log")
    axes.legend()
