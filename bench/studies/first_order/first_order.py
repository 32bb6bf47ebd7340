"""`bench study first-order`: the landscape of adversarial perturbations, and how PGD moves in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from bench.core import registry, seeds
from bench.core.progress import Progress
from bench.studies.claims import ClaimsStudy, Findings, Table, effect_claim, holds_if, paired_less
from bench.studies.first_order.first_order_claims import (
    DIM,
    EPS,
    PAPER,
    SMALL,
    Plan,
    definite_near_optima,
    figures_2_and_3,
    single_optimum,
    trajectories,
)
from bench.studies.first_order.first_order_dynamics import CPU, LONGEST, escape
from bench.studies.first_order.first_order_figures import Circle, draw
from bench.studies.first_order.first_order_landscape import LossName, landscape, maxima_on_circle

SCALES, RATIOS = (0.01, 0.1, 1.0), (0.1, 1.0, 10.0)  # of figure 1
STARTS = 1000  # of PGD, in figure 1
LOSSES: tuple[LossName, ...] = ("quadratic", "cross entropy")


@registry.study("first-order")
@dataclass(frozen=True, kw_only=True)
class FirstOrderStudy(ClaimsStudy):
    """PGD on random two-layer networks and on a CNN: local optima, escapes from the worst point, rates, input scale.

    "Towards Understanding the Dynamics of the First-Order Adversaries" (Deng et al., 2020): figures 1 to 3, Theorems
    3.1 and 5.1, Corollary 3.1, Lemmas 4.4 and 4.5. The networks are those of section 2 (softplus, Xavier's scales); the
    loss is (y - f)^2 or the cross entropy. The paper minimizes -L, so its local minima are local maxima of the loss
    here.
    """

    data_dir: str | None = None  # folder with mnist.npz; none: BENCH_DATA, else a download
    eta: float = 0.01  # step size of the escapes in figure 1
    image_eta: float = 0.3  # step size of figures 2 and 3

    def findings(self) -> Findings:
        plan, found = SMALL if self.small else PAPER, Findings(inches=(12, 11))
        circles = self.figure_1(plan, found)
        for loss in LOSSES:
            nets = [
                landscape(DIM, plan.width, 1.0, EPS, seeds.derive(self.seed, "first-order", k), loss)
                for k in range(plan.networks)
            ]
            trajectories(plan, self.seed, nets, loss, found)
            single_optimum(plan, self.seed, loss, found)
            definite_near_optima(nets, self.seed, loss, found)
        initial, trained = figures_2_and_3(plan, self.data_dir, self.image_eta, self.seed, found)
        found.draw = partial(draw, circles=circles, initial=initial, trained=trained)
        return found

    def figure_1(self, plan: Plan, found: Findings) -> dict[tuple[float, float], Circle]:
        """Optima on the circle of radius eps and steps of an escape, in two dimensions."""
        counts = {(s, r): np.empty((plan.networks, 2)) for s in SCALES for r in RATIOS}
        steps = {key: np.empty(plan.networks) for key in counts}
        inside = dict.fromkeys(counts, 0.0)
        circles = {}
        with Progress("first-order: figure 1", plan.networks * len(counts), "landscape") as progress:
            for (scale, ratio), k in [(key, k) for key in counts for k in range(plan.networks)]:
                seed = seeds.derive(self.seed, "first-order", "figure 1", k)
                space = landscape(2, plan.width, scale, ratio, seed)
                generator = seeds.generator(CPU, seed, "first-order", "starts")
                ends = space.optima(space.starts(STARTS if k == 0 else 50, generator))
                inside[scale, ratio] += float((ends.norm(dim=1) < 0.99 * space.eps).double().mean()) / plan.networks
                maxima = maxima_on_circle(space)
                reached = len(np.unique((ends @ maxima.T).argmax(dim=1).numpy()))
                counts[scale, ratio][k] = len(maxima), reached
                path, needed = escape(space, generator, self.eta)
                steps[scale, ratio][k] = needed
                if k == 0:
                    circles[scale, ratio] = Circle(space, maxima, path)
                progress.advance(1)
        rows = [
            (
                s, r, float(counts[s, r][:, 0].mean()), int(counts[s, r][:, 0].max()),
                f"{counts[s, r][0, 1]:.0f} of {counts[s, r][0, 0]:.0f}", 100 * inside[s, r],
                float(np.median(steps[s, r])),
            )
            for s, r in counts
        ]  # fmt: skip
        header = (
            "scale", "ratio", "maxima, mean", "most", f"reached from {STARTS}", "ends inside, %", "steps of an escape",
        )  # fmt: skip
        title = f"Figure 1: local maxima of (y - f)^2 on the circle, {plan.networks} networks, L2, eta {self.eta:g}"
        found.tables.append(Table(title, header, rows))
        smallest = max(float(counts[SCALES[0], r][:, 0].max()) for r in RATIOS)
        claim = "Figure 1: one optimum at the smallest input scale, up to the largest ratio"
        found.claims.append(holds_if(claim, f"at most {smallest:.0f} at scale {SCALES[0]:g}", smallest == 1))
        few, many = counts[SCALES[-1], RATIOS[0]][:, 0], counts[SCALES[-1], RATIOS[-1]][:, 0]
        difference, p = paired_less(few, many)
        claim = "Figure 1: at the largest scale a larger ratio has more optima"
        text = f"{difference.times(-1)} more at ratio {RATIOS[-1]:g} than {RATIOS[0]:g}, Wilcoxon p = {p:.2g}"
        found.claims.append(effect_claim(claim, text, difference.times(-1)))  # five networks are few for a rank test
        for low, high in pairwise(SCALES):
            of_scale = ([np.minimum(steps[s, r], LONGEST) for r in RATIOS] for s in (low, high))
            quick, slow = (np.log10(np.mean(each, axis=0)) for each in of_scale)
            difference, p = paired_less(quick, slow)
            claim = f"Figure 1: escapes are faster at scale {low:g} than at {high:g}, over all ratios"
            late = int(sum(np.isinf(steps[high, r]).sum() for r in RATIOS))
            text = f"10^({difference.times(-1)}) times as many steps at {high:g}, one-sided Wilcoxon p = {p:.2g}"
            text += f"; {late} escapes were stopped after {LONGEST:,} steps" if late else ""
            found.claims.append(holds_if(claim, text, p < 0.05))
        return circles
