"""`bench study lazy-regime`: networks that stay near their start are attacked by one small gradient step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.core import registry
from bench.core.progress import Progress
from bench.studies.claims import (
    Claim,
    ClaimsStudy,
    Findings,
    Floats,
    Table,
    exponent,
    exponent_claim,
    holds_if,
    paired_less,
)
from bench.studies.lazy_training.lazy_networks import (
    Lazy,
    Points,
    can_change_sign,
    flipping_steps,
    robust_accuracy,
    sign_change_bound,
    train_adversarially,
    train_lazily,
    zeros_and_ones,
)
from bench.studies.lazy_training.lazy_results import (
    BUDGETS,
    PAPER,
    RADII,
    SMALL,
    THEORY,
    Curve,
    Grid,
    Plan,
    Variant,
    draw,
    where_it_passes_half,
)

NEAR = 0.15  # tolerance of an exponent around the theory's, if its interval is narrower
FAILURE = 0.01  # probability in lemma 4.3


@registry.study("lazy-regime")
@dataclass(frozen=True, kw_only=True)
class LazyRegimeStudy(ClaimsStudy):
    """One gradient step of size O(1/sqrt(d)) flips every network in the lazy regime: figures 2 to 7, Lemma 4.3.

    "Adversarial Robustness is at Odds with Lazy Training" (Wang et al., 2022). Two-layer ReLU networks with a fixed top
    layer are trained on MNIST's 0 and 1, downsampled to d pixels: by SGD until a neuron would leave its ball of radius
    C0/sqrt(m), or by PGD adversarial training with projections onto these balls. Figures 2 and 3 have raw inputs and a
    bias; figures 5 and 6 and the adversarial training have |x| = 1 and no bias. Our copy of the paper lacks the numbers
    of its settings (widths, C0, V, seeds, the learning rate of adversarial training), so these are our choices.
    """

    data_dir: str | None = None  # folder with mnist.npz; none: BENCH_DATA, else a download
    c0: float = 4.0  # V sqrt(m) of figure 4, left
    delta: float = 1.0  # delta sqrt(d) of figure 4, right

    def findings(self) -> Findings:
        plan, found = SMALL if self.small else PAPER, Findings(inches=(12, 10))
        curves = self.train_curves(plan)
        report_exponents(plan, curves, found)
        report_single_step(plan, curves, found)
        report_sign_changes(plan, zeros_and_ones(self.data_dir, plan.at_side, normalised=True)[1], found)
        left, right = self.transitions(plan)
        report_transitions(left, right, found, f"C0 = {self.c0:g}, delta = {self.delta:g}/sqrt(d)")
        found.draw = partial(draw, plan=plan, curves=curves, left=left, right=right)
        return found

    def train_curves(self, plan: Plan) -> dict[Variant, Curve]:
        """The networks of figures 2, 3, 5 and 6: every d and seed of every variant."""
        curves = {variant: Curve.empty(plan) for variant in plan.variants()}
        with Progress("lazy-regime: SGD", len(curves) * len(plan.sides) * plan.seeds, "training") as progress:
            for column, side in enumerate(plan.sides):
                for inputs in ("raw", "normalised"):
                    parts = zeros_and_ones(self.data_dir, side, normalised=inputs == "normalised")
                    train, test = parts[0].first(plan.train), parts[1].first(plan.test)
                    for variant, row in [(v, row) for v in curves for row in range(plan.seeds) if v.inputs == inputs]:
                        seed = self.seed * 1000 + row
                        net = Lazy(train.dim, variant.width, seed, bias=inputs == "raw")
                        train_lazily(net, train, c0=variant.c0, epochs=plan.epochs, seed=seed)
                        steps, curve = flipping_steps(net, test), curves[variant]
                        for name, values in zip(THEORY, (steps.eta, steps.gradient, steps.size), strict=True):
                            curve.mean[name][row, column] = float(values[values.isfinite()].mean())
                            curve.points[name][row, column] = values.numpy()
                        curve.error[row, column] = net.error(test)
                        progress.advance(1)
        return curves

    def transitions(self, plan: Plan) -> tuple[Grid, Grid]:
        """Figure 4. Left: rows d, columns delta sqrt(d). Right: rows m, columns V sqrt(m)."""
        left = Grid.empty(plan.at_seeds, [side**2 for side in plan.at_sides], BUDGETS)
        right = Grid.empty(plan.at_seeds, plan.at_widths, RADII)
        cells = [(left, side, plan.at_width, self.c0, c, (i, j)) for i, side in enumerate(plan.at_sides)
                 for j, c in enumerate(BUDGETS)]  # fmt: skip
        cells += [(right, plan.at_side, width, c0, self.delta, (i, j)) for i, width in enumerate(plan.at_widths)
                  for j, c0 in enumerate(RADII)]  # fmt: skip
        with Progress("lazy-regime: adversarial training", len(cells) * plan.at_seeds, "training") as progress:
            for grid, side, width, c0, budget, (i, j) in cells:
                train, test = zeros_and_ones(self.data_dir, side, normalised=True)
                for row in range(plan.at_seeds):
                    seed, delta = self.seed * 1000 + row, budget / side
                    net = Lazy(train.dim, width, seed, bias=False)
                    train_adversarially(
                        net, train.first(plan.at_train), delta=delta, radius=c0 / math.sqrt(width),
                        epochs=plan.at_epochs, steps=plan.at_steps[0], seed=seed,
                    )  # fmt: skip
                    grid.accuracy[row, i, j] = robust_accuracy(net, test.first(plan.test), delta, plan.at_steps[1])
                    progress.advance(1)
        return left, right


def report_exponents(plan: Plan, curves: dict[Variant, Curve], found: Findings) -> None:
    dims, rows = plan.dims, list[tuple[str | float, ...]]()
    for variant, curve in curves.items():
        powers = {name: exponent(dims, curve.mean[name]) for name in THEORY}
        rows.append((variant.name, *map(str, powers.values()), float(100 * curve.error.mean())))
        if (variant.width, variant.c0) == plan.main:
            for name, power in powers.items():
                figure = "Figure 2" if variant.inputs == "raw" else "Figure 5"
                claim = f"{figure}: {name} behaves as d^{THEORY[name]:g} ({variant.name})"
                found.claims.append(
                    exponent_claim(claim, f"exponent {power} over {plan.seeds} seeds", power, THEORY[name], NEAR)
                )
    theory = ("theory (|x| = 1)", *(f"{power:g}" for power in THEORY.values()), "-")
    title = f"Exponents of d in {', '.join(map(str, dims))}, MNIST 0/1, L2, {plan.seeds} seeds"
    found.tables.append(Table(title, ("networks", *THEORY, "test error, %"), [*rows, theory]))
    for inputs, figure in (("raw", "Figure 3"), ("normalised", "Figure 6")):
        low, high = (curves[Variant(inputs, plan.main[0], c0)] for c0 in (plan.c0s[0], plan.c0s[-1]))
        for name in THEORY:
            difference, p = paired_less(low.mean[name].mean(axis=1), high.mean[name].mean(axis=1))
            claim = f"{figure}: {name} increases with C0, from {plan.c0s[0]:g} to {plan.c0s[-1]:g} ({inputs} inputs)"
            text = f"difference over d {difference.times(-1)}"
            found.claims.append(tested(claim, f"{text}, one-sided Wilcoxon p = {p:.2g}", -difference.mean, p))


def tested(claim: str, measured: str, effect: float, p: float) -> Claim:
    """`holds` if significant; with fewer than five seeds no Wilcoxon test can be, so there is no verdict."""
    if effect > 0 and p > 0.05:
        return Claim(claim, measured, "not tested at this size")
    return holds_if(claim, measured, effect > 0)


def report_single_step(plan: Plan, curves: dict[Variant, Curve], found: Findings) -> None:
    """Theorem 3.1 and Corollary 3.2: the constant c is fixed at the smallest d and tested at all others."""
    curve = curves[Variant("normalised", *plan.main)]
    quantiles = np.quantile(curve.size, 0.95, axis=2, method="higher")  # infinite if no step flips 5 % of the points
    claim = "Theorem 3.1: a single step of size O(d^-0.5) flips the prediction, |x| = 1"
    if np.isfinite(quantiles).all():
        power = exponent(plan.dims, quantiles)
        text = f"exponent of d of the 95 % quantile over test points: {power}"
        found.claims.append(holds_if(claim, text, power.mean <= -0.5 + max(NEAR, power.high - power.mean)))
    else:
        found.claims.append(holds_if(claim, "no step flips 5 % of the test points of some network", holds=False))
    scaled = curve.size * np.sqrt(plan.dims)[None, :, None]
    c = float(np.quantile(scaled[:, 0], 0.95, method="higher"))
    shares = (scaled <= c).mean(axis=2)
    rows = [(d, c / math.sqrt(d), float(100 * shares[:, k].mean())) for k, d in enumerate(plan.dims)]
    title = f"Test points that one gradient step of length c/sqrt(d) flips, c = {c:.3g} fixed at d = {plan.dims[0]}"
    found.tables.append(Table(title, ("d", "c / sqrt(d)", "flipped, %"), rows))
    least = float(shares[:, 1:].mean(axis=0).min())
    text = f"at least {100 * least:.1f} % of the test points at each larger d; c set for 95 % at d = {plan.dims[0]}"
    claim = "Corollary 3.2: the robust error at c/sqrt(d) is bounded from below by a constant (here one half)"
    found.claims.append(holds_if(claim, text, least > 0.5))


def report_sign_changes(plan: Plan, test: Points, found: Findings) -> None:
    """Lemma 4.3: the number of neurons that can change their sign within the balls, against the explicit bound."""
    c0, widths, rows, counts = plan.main[1], [250, 1000, 4000, 16000], list[tuple[float, ...]](), list[Floats]()
    for width in widths:
        per_seed = []
        for seed in range(max(5, plan.seeds)):
            net = Lazy(test.dim, width, seed, bias=False)
            per_seed.append(can_change_sign(net.start, test.first(plan.test).x, c0 / math.sqrt(width)).numpy())
        counts.append(np.stack(per_seed).astype(np.float64))
        bound = sign_change_bound(width, c0, FAILURE)
        over = float((counts[-1] > bound).mean())
        rows.append((width, float(counts[-1].mean()), float(counts[-1].max()), bound, 100 * over))
    title = f"Neurons that can change sign within C0/sqrt(m), C0 = {c0:g}, d = {test.dim}, |x| = 1"
    found.tables.append(Table(title, ("m", "mean", "largest", f"bound (prob. {1 - FAILURE:g})", "above it, %"), rows))
    worst = max(row[-1] for row in rows)
    text = f"at most {worst:.2g} % of points and seeds are above it; allowed {100 * FAILURE:g} %"
    found.claims.append(holds_if("Lemma 4.3: C0 sqrt(2m/pi) + sqrt(m log(1/gamma)/2)", text, worst <= 100 * FAILURE))
    power = exponent(widths, np.stack([each.mean(axis=1) for each in counts], axis=1))
    text = f"exponent {power} of m from {widths[0]} to {widths[-1]}"
    claim = "Lemma 4.3: the number grows as sqrt(m)"
    found.claims.append(exponent_claim(claim, text, power, 0.5, near=0.05))


def report_transitions(left: Grid, right: Grid, found: Findings, setting: str) -> None:
    for grid, row, column, claim in (
        (left, "d", "delta sqrt(d)", "left: robust accuracy drops within a factor 2 of delta = |x|/sqrt(d)"),
        (right, "m", "V sqrt(m)", "right: robust training becomes possible within a factor 2 of V = 1/sqrt(m)"),
    ):
        mean = grid.accuracy.mean(axis=0)
        at = [where_it_passes_half(values, grid.columns) for values in mean]
        rows = [
            (name, *map(float, 100 * values), place)
            for name, values, place in zip(grid.rows, mean, at, strict=True)
        ]  # fmt: skip
        header = (f"{row} \\ {column}", *(f"{c:g}" for c in grid.columns), "passes 50 % at")
        title = f"Figure 4, {claim.partition(':')[0]}: robust test accuracy (PGD-L2), %, {setting}"
        found.tables.append(Table(title, header, rows))
        text = f"the mean over seeds passes 50 % at {min(at):.2g} to {max(at):.2g} times that"
        found.claims.append(holds_if(f"Figure 4, {claim}", text, min(at) >= 0.5 and max(at) <= 2))
    passes = right.passes()
    complete = passes[np.isfinite(passes).all(axis=1)]
    if len(complete) >= 2:
        power = exponent(right.rows, complete / np.sqrt(right.rows))
        text = f"exponent {power} over {len(complete)} seeds, m from {right.rows[0]} to {right.rows[-1]}"
        claim = "Figure 4, right: the transition V behaves as m^-0.5"
        found.claims.append(exponent_claim(claim, text, power, -0.5, NEAR))
    found.notes.append(
        "Figure 4: the factors depend on C0 (left) and on delta (right), which our copy of the paper does not give."
    )
