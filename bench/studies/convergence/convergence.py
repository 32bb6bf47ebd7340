"""`bench study convergence`: adversarial training of wide networks near their start reaches a small surrogate loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bench.core import registry
from bench.core.progress import Progress
from bench.studies.claims import (
    ClaimsStudy,
    Findings,
    Floats,
    Table,
    exponent,
    exponent_claim,
    falling_trend,
    holds_if,
    mean_interval,
    network,
    paired_less,
)
from bench.studies.convergence.sphere_training import (
    CPU,
    Data,
    Trained,
    kernel_fit_error,
    relu_kernel,
    robust_error,
    robust_loss,
    sphere_data,
    tangent_kernel,
    train,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDING = 1e-6
HARM = 0.01  # nats: a projection that costs less than this counts as harmless
STEP = {
    "two-layer": 16.0,
    "deep": 1.0,
}  # the step size, that of deep networks over the width (Theorem 4.1: eps / (m H^2))


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiments; the paper has no experiments."""

    n: int = 20  # points
    dim: int = 10
    delta: float = 0.2  # radius of the perturbations, L2
    seeds: int = 10
    steps: int = 40  # T
    attack_steps: int = 5
    widths: tuple[int, ...] = (4, 16, 64)
    depths: tuple[int, ...] = (1, 2, 3)
    middle: int = 64  # width of the other experiments
    radii: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)  # R
    fewest: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)  # widths of the interpolation
    interpolation: int = 150  # its steps
    interpolated: int = 10  # its points
    interpolated_delta: float = 0.4
    interpolation_seeds: int = 6


SMALL = Plan()
PAPER = Plan(
    n=40, dim=20, steps=300, attack_steps=10, widths=(4, 16, 64, 256, 1024), depths=(1, 2, 3, 4), middle=256,
    radii=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0), fewest=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    interpolation=1000, interpolated=20, interpolation_seeds=10,
)  # fmt: skip


@registry.study("convergence")
@dataclass(frozen=True, kw_only=True)
class ConvergenceStudy(ClaimsStudy):
    """Adversarial training in B(R): surrogate loss L_A and robust loss L_* by width, depth and R; NTK; interpolation.

    "Convergence of Adversarial Training in Overparametrized Neural Networks" (Gao et al., 2019): Theorems 4.1, 5.1, 5.2
    and 6.1, Definition 5.1. Points of the unit sphere have random labels, and perturbations stay on the sphere within
    L2 0.2; the loss is log(1 + e^-yf). `deep` is Eq. 1 (ReLU, frozen ends), `two-layer` Eq. 4 (softplus, mirrored
    start). L_* is bracketed by a strong attack from below and linear bounds over the whole L2 ball from above. The
    paper has no experiment and its widths (R^9 H^16 / eps^7) are out of reach, so only trends can be shown. The six
    seeds of `small` are too few to show the trend of Theorem 6.1. At the size `paper`, the loss of `two-layer` falls
    from 4 to 16 units only, and a ball that cuts off its path (R = 16) costs 0.14 nats.
    """

    def findings(self) -> Findings:
        plan, found = SMALL if self.small else PAPER, Findings(inches=(12, 7.5))
        by_width = {kind: self.widths(plan, kind, found) for kind in STEP}
        by_radius = {kind: self.radii(plan, kind, found) for kind in STEP}
        self.depths(plan, found)
        kernel = self.kernel(plan, found)
        fewest = self.interpolation(plan, found)
        found.draw = partial(draw, plan=plan, by_width=by_width, by_radius=by_radius, kernel=kernel, fewest=fewest)
        return found

    def trained(
        self, plan: Plan, kind: str, width: int, row: int, *, radius: float, depth: int = 2
    ) -> tuple[Trained, Data]:
        """One training; radius is R, so the balls have radius R / sqrt(m) for deep networks (Eq. 2)."""
        data = sphere_data(plan.n, plan.dim, plan.delta, self.seed * 1000 + row)
        spec = f"deep-ntk:depth={depth}" if kind == "deep" else "two-layer:activation=softplus:mirrored=true"
        model = network(f"{spec}:width={width}", plan.dim, self.seed, "convergence", kind, row)
        scale = width if kind == "deep" else 1
        result = train(
            model, data, lr=STEP[kind] / scale, steps=plan.steps, radius=radius / math.sqrt(scale),
            attack_steps=plan.attack_steps,
        )  # fmt: skip
        return result, data

    def widths(self, plan: Plan, kind: str, found: Findings) -> Floats:
        """min_t L_A at fixed T by width, with the bracket of L_* at the last weights: (seeds, widths)."""
        least, last, below, above = (np.empty((plan.seeds, len(plan.widths))) for _ in range(4))
        with Progress(f"convergence: {kind}, width", least.size, "training") as progress:
            for row, column in np.ndindex(*least.shape):
                result, data = self.trained(plan, kind, plan.widths[column], row, radius=math.inf)
                least[row, column], last[row, column] = result.least, result.surrogate[-1]
                below[row, column], above[row, column] = robust_loss(result.model, data, row)
                progress.advance(1)
        rows = [
            (m, *(float(part[:, j].mean()) for part in (least, last, below, above))) for j, m in enumerate(plan.widths)
        ]
        title = f"Losses after T = {plan.steps} steps without projection, {kind}, {plan.seeds} seeds, L2 {plan.delta:g}"
        found.tables.append(Table(title, ("m", "min_t L_A", "L_A(W_T)", "L_* at least", "L_* at most"), rows))
        correlation, p = falling_trend(least)
        theorem = "4.1" if kind == "deep" else "5.1"
        claim = f"Theorem {theorem} ({kind}): min_t L_A - L_*(W_*) falls with the width at fixed T"
        drop = mean_interval(least[:, 0] - least[:, -1])
        text = f"min_t L_A, which bounds it, falls by {drop} from m = {plan.widths[0]} to {plan.widths[-1]}"
        found.claims.append(holds_if(claim, f"{text}; rank correlation {correlation}, p = {p:.2g}", p < 0.05))
        sound = bool((np.maximum(last, below) <= above + ROUNDING).all())
        text = f"the bracket is {float((above - below).mean()):.3g} wide on average, in {below.size} networks"
        found.claims.append(
            holds_if(f"Definition 3.4 ({kind}): L_A <= upper bound of L_*, for each attack", text, sound)
        )
        return least

    def radii(self, plan: Plan, kind: str, found: Findings) -> Floats:
        """min_t L_A by R, the last column without projection: (seeds, radii + 1)."""
        radii = (*plan.radii, math.inf)
        least, moved = np.empty((plan.seeds, len(radii))), np.empty((plan.seeds, len(radii)))
        with Progress(f"convergence: {kind}, R", least.size, "training") as progress:
            for row, column in np.ndindex(*least.shape):
                result, _ = self.trained(plan, kind, plan.middle, row, radius=radii[column])
                least[row, column] = result.least
                moved[row, column] = result.moved * (math.sqrt(plan.middle) if kind == "deep" else 1)
                progress.advance(1)
        rows = [(f"{r:g}", float(least[:, j].mean()), float(moved[:, j].max())) for j, r in enumerate(radii)]
        title = f"By R, {kind}, m = {plan.middle}: min_t L_A, and the largest distance of a layer (in units of R)"
        found.tables.append(Table(title, ("R", "min_t L_A", "moved"), rows))
        correlation, p = falling_trend(least[:, :-1])
        claim = f"Theorem 5.2, Corollary 5.1 ({kind}): with a larger R, L_A becomes smaller"
        text = f"from {least[:, 0].mean():.3g} at R = {radii[0]:g} to {least[:, -2].mean():.3g} at R = {radii[-2]:g}"
        found.claims.append(holds_if(claim, f"{text}; rank correlation {correlation}, p = {p:.2g}", p < 0.05))
        cost = mean_interval(least[:, -2] - least[:, -1])
        claim = f"Section 7 ({kind}): the projection does not hurt (within {HARM:g} nats, at R = {radii[-2]:g})"
        found.claims.append(holds_if(claim, f"min_t L_A with it minus without it: {cost}", cost.high < HARM))
        return least

    def depths(self, plan: Plan, found: Findings) -> None:
        rows = []
        for depth in plan.depths:
            results = [
                self.trained(plan, "deep", plan.middle, row, radius=math.inf, depth=depth)[0]
                for row in range(plan.seeds)
            ]
            rows.append((depth, str(mean_interval([result.least for result in results]))))
        title = f"min_t L_A by depth H, m = {plan.middle}, T = {plan.steps} (Theorem 4.1's width grows as H^16)"
        found.tables.append(Table(title, ("H", "min_t L_A"), rows))

    def kernel(self, plan: Plan, found: Findings) -> Floats:
        """The error of the kernel of m units against its closed form, (seeds, widths); the fit in its space."""
        widths, data = (64, 256, 1024, 4096), sphere_data(plan.n, plan.dim, plan.delta, self.seed)
        exact, error = relu_kernel(data.x, data.x), np.empty((plan.seeds, len(widths)))
        for row, column in np.ndindex(*error.shape):
            generator = torch.Generator(CPU).manual_seed(self.seed * 1000 + 10 * row + column)
            weight = torch.randn(widths[column], plan.dim, generator=generator, dtype=torch.float64)
            estimate = tangent_kernel(weight, data.x, data.x, lambda z: (z > 0).to(z.dtype))
            error[row, column] = float((estimate - exact).norm() / exact.norm())
        power = exponent(widths, error)
        claim = "Definition 5.1 (ReLU): the kernel of m units tends to the NTK as m^-0.5"
        found.claims.append(exponent_claim(claim, f"exponent {power}", power, -0.5, near=0.05))
        per_point = (0, 4, 16)
        fits = np.array([
            kernel_fit_error(sphere_data(plan.n, plan.dim, plan.delta, self.seed * 1000 + row), per_point, 50, row)
            for row in range(plan.seeds)
        ])  # fmt: skip
        rows = [(k, float(fits[:, j].mean()), float(fits[:, j].max())) for j, k in enumerate(per_point)]
        title = "Least-norm fit in the NTK's space: largest |f(x') - y| over new perturbations x' of the same radius"
        found.tables.append(Table(title, ("perturbations per point", "mean over seeds", "largest"), rows))
        text = f"it is {fits[:, -1].max():.2g} at most with {per_point[-1]} perturbations of each point in the fit"
        found.claims.append(
            holds_if(
                "Assumption 5.2: a function of the space is robust (error below 1)", text, bool(fits[:, -1].max() < 1)
            )
        )
        return error

    def interpolation(self, plan: Plan, found: Findings) -> Floats:
        """The smallest width that interpolates, plainly and robustly: (seeds, 2); infinite if none does."""
        fewest = np.full((plan.interpolation_seeds, 2), np.inf)
        with Progress("convergence: interpolation", fewest.size, "fit") as progress:
            for row, robust in np.ndindex(*fewest.shape):
                data = sphere_data(plan.interpolated, plan.dim, plan.interpolated_delta, self.seed * 1000 + row)
                for width in plan.fewest:
                    if self.interpolates(plan, data, width, row, robust=bool(robust)):
                        fewest[row, robust] = width
                        break
                progress.advance(1)
        rows = [(row, *(f"{width:g}" for width in widths)) for row, widths in enumerate(fewest)]
        title = (
            f"Least width of a two-layer ReLU network that fits {plan.interpolated} points, {plan.interpolation} steps"
        )
        found.tables.append(Table(title, ("seed", "plainly", "robustly"), rows))
        largest = 2.0 * plan.fewest[-1]  # replaces an infinite width, of which this is a lower bound
        log = np.log2(np.minimum(fewest, largest))
        difference, p = paired_less(log[:, 0], log[:, 1])
        claim = "Theorem 6.1 (the trend): robust interpolation needs more units than plain interpolation"
        text = f"2^({difference.times(-1)}) times as many, one-sided Wilcoxon p = {p:.2g}; widths found by descent"
        found.claims.append(holds_if(claim, text, p < 0.05))
        return fewest

    def interpolates(self, plan: Plan, data: Data, width: int, row: int, *, robust: bool) -> bool:
        model: nn.Module = network(f"two-layer:width={width}", plan.dim, self.seed, "convergence", "fit", row)
        train(
            model, data, lr=STEP["two-layer"], steps=plan.interpolation, radius=math.inf,
            attack_steps=plan.attack_steps if robust else 0,
        )  # fmt: skip
        return robust_error(model, data, row, clean=not robust) == 0


def draw(
    canvas: Figure,
    *,
    plan: Plan,
    by_width: dict[str, Floats],
    by_radius: dict[str, Floats],
    kernel: Floats,
    fewest: Floats,
) -> None:
    panels = (
        (f"min L_A after {plan.steps} steps, sphere, L2 {plan.delta:g}", plan.widths, by_width, "width m"),
        (f"with projection onto B(R), m = {plan.middle}", plan.radii, by_radius, "R"),
    )
    for panel, (title, x, results, label) in enumerate(panels, start=1):
        axes = canvas.add_subplot(2, 2, panel)
        for kind, least in results.items():
            values = least[:, : len(x)]
            intervals = [mean_interval(column) for column in values.T]
            error = [each.high - each.mean for each in intervals]
            axes.errorbar(x, values.mean(axis=0), yerr=error, marker="o", capsize=3, label=kind)
        axes.set(title=title, xlabel=label, ylabel="min_t L_A, nats", xscale="log")
        axes.legend()
    axes = canvas.add_subplot(2, 2, 3)
    widths = np.array([64.0, 256.0, 1024.0, 4096.0])
    axes.plot(widths, kernel.mean(axis=0), marker="o", label="measured")
    axes.plot(widths, kernel[:, 0].mean() * np.sqrt(widths[0] / widths), label="m^-0.5")
    axes.set(
        title="NTK of m ReLU units against its limit",
        xlabel="width m",
        ylabel="relative error",
        xscale="log",
        yscale="log",
    )
    axes.legend()
    axes = canvas.add_subplot(2, 2, 4)
    position = np.arange(len(fewest))
    for k, name in enumerate(("plainly", "robustly")):
        axes.bar(position + 0.4 * k, np.minimum(fewest[:, k], 2 * plan.fewest[-1]), width=0.4, label=name)
    axes.set(
        title=f"Least width that fits {plan.interpolated} points, L2 {plan.interpolated_delta:g}",
        xlabel="seed",
        ylabel="width m",
        yscale="log",
    )
    axes.legend()
