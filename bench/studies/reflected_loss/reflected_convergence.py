"""`bench study reflected-convergence`: the inequalities and iteration counts of PGD on the reflected loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from attacks.ascent import ascend
from attacks.losses import margin, reflected
from bench.core import registry, seeds
from bench.core.progress import Progress
from bench.core.threat import ThreatModel
from bench.datasets.synthetic import separable_points
from bench.studies.claims import ClaimsStudy, Findings, Floats, Table, exponent, holds_if
from bench.studies.reflected_loss.reflected_networks import (
    CPU,
    ITERATIONS,
    ROUNDING,
    Instances,
    Networks,
    lowest_margins,
    norm_growth,
    random_instances,
    slack,
    train_step,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN, RADIUS, UNITS, DIM = 0.3, 1.0, 20, 20  # gamma and R of the data, width and dimension of the trained networks
LARGEST, TESTS = 3000, 300  # iterations of a training, at most; points on which its error is measured
AT_A_TIME, STILL = 10, 1e-9  # steps of the attack between two checks that its points still move


@dataclass(frozen=True)
class Setting:
    """A training by algorithm 2: beta None is the robust error with kappa sqrt(m) = 1 (Corollary 3.5)."""

    alpha: float
    nu: float
    eps: float
    beta: float | None = None

    @property
    def top(self) -> float:
        """kappa sqrt(m): 1, or the value of Corollary 3.6."""
        return 1.0 if self.beta is None else self.beta / (2 * self.nu * (1 - self.alpha))

    def bound(self, omega: float) -> float:
        """The largest number of iterations by Theorem 3.4, of which Corollaries 3.5 and 3.6 are special cases."""
        scale = 1 + omega * MARGIN * self.alpha * self.top * self.eps
        return 64 * (RADIUS + self.nu) ** 2 * scale / ((MARGIN - self.nu) * self.alpha * self.eps) ** 2


@dataclass
class Training:
    """Results of one setting. hits (seeds,): the first iteration with an error of at most 2 eps on the test points."""

    setting: Setting
    hits: Floats
    expected: float  # the first iteration at which the mean error over seeds is at most 2 eps
    growth: float  # the largest |W_(t+1)|^2 - |W_1|^2 - 3 eta t


def train(setting: Setting, n_seeds: int, seed: int, omega: float) -> Training:
    """Algorithm 2 with algorithm 1 as its attack, one network a seed, until the error is at most 2 eps for all."""
    name = ("reflected-convergence", f"{setting.alpha:g}", f"{setting.nu:g}")
    rng = np.random.default_rng(seeds.derive(seed, *name))
    randn = partial(torch.randn, generator=seeds.generator(CPU, seed, *name), dtype=torch.float64)
    hard = partial(separable_points, rng, dim=DIM, radius=RADIUS, gamma=MARGIN, farthest=MARGIN)
    data = [hard(LARGEST + TESTS) for _ in range(n_seeds)]
    x, y = (torch.from_numpy(np.stack([part[k] for part in data])) for k in (0, 1))
    weight = randn(n_seeds, UNITS, DIM)
    weight = omega * weight / weight.flatten(1).norm(dim=1)[:, None, None]
    top = torch.sign(randn(n_seeds, UNITS)) * setting.top / math.sqrt(UNITS)
    nets = Networks(weight, top, torch.full((n_seeds,), setting.alpha, dtype=torch.float64))
    eta = torch.full((n_seeds,), 1 / (setting.top * (RADIUS + setting.nu)) ** 2, dtype=torch.float64)
    first, growth, hits, expected = nets.norm**2, -math.inf, np.full(n_seeds, np.inf), math.inf
    for t in range(1, LARGEST + 1):
        if t % max(1, t // 20) == 0:  # every step at first, then twenty times per doubling of the steps
            errors = robust_error(nets, x[:, LARGEST:], y[:, LARGEST:], setting)
            hits[(errors <= 2 * setting.eps) & np.isinf(hits)] = t
            expected = min(expected, t if errors.mean() <= 2 * setting.eps else math.inf)
        if np.isfinite(hits).all() and math.isfinite(expected):
            break
        points = attack(nets, x[:, t - 1], y[:, t - 1], setting)
        train_step(nets, points, y[:, t - 1], eta)
        growth = max(growth, float((nets.norm**2 - first - 3 * eta * t).max()))
    return Training(setting, hits, expected, growth)


def attack(nets: Networks, x: Tensor, y: Tensor, setting: Setting) -> Tensor:
    """Algorithm 1 with the largest step size and at least the number of iterations that Theorem 3.4 requires."""
    eta = 1 / (setting.top * nets.norm) ** 2
    left = math.ceil(float((8 * setting.nu**2 / (eta * setting.eps)).max()))
    lowest, points, at = torch.full_like(eta, torch.inf), x.clone(), x

    def visit(point: Tensor, logits: Tensor) -> None:
        margins = margin(logits, y)
        better = margins < lowest
        lowest[better], points[better] = margins[better], point[better]

    threat = ThreatModel("L2", setting.nu, None)
    while left > 0:
        before, steps, left = at, min(left, AT_A_TIME), left - AT_A_TIME
        at = ascend(
            nets, x, y, threat=threat, steps=steps, alpha=eta, start=at, loss=reflected, step="raw", visit=visit
        )
        if (at - before).abs().max() < STILL:  # all further iterates would be the same points
            break
    return points


def robust_error(nets: Networks, x: Tensor, y: Tensor, setting: Setting) -> Floats:
    """The beta-robust error of each network on points x (N,k,d), (N,): the share with min y f_Wbar < -beta.

    Exact for alpha = 1, where f is linear; else by PGD, so a lower bound.
    """
    n, k, _ = x.shape
    sign = 2.0 * y - 1
    if setting.alpha == 1:
        linear = torch.einsum("nm,nmd->nd", nets.top, nets.weight)
        lowest = sign * torch.einsum("nkd,nd->nk", x, linear) - setting.nu * linear.norm(dim=1)[:, None]
    else:
        repeat = [part.repeat_interleave(k, dim=0) for part in (nets.weight, nets.top, nets.slope)]
        nu = torch.full((n * k,), setting.nu, dtype=torch.float64)
        each = Instances(Networks(repeat[0], repeat[1], repeat[2]), x.flatten(0, 1), y.flatten(), nu, nu)
        lowest = lowest_margins(each, alpha=nu / 4, steps=12).reshape(n, k)
    limit = -(setting.beta or 0.0) * nets.norm[:, None]
    return (lowest < limit).double().mean(dim=1).numpy()


@registry.study("reflected-convergence")
@dataclass(frozen=True, kw_only=True)
class ReflectedConvergenceStudy(ClaimsStudy):
    """PGD on the reflected loss: Theorem 3.2 and Eq. 6 on random instances, iterations of training against the bounds.

    reflected-loss.txt ("Robustness Guarantees for Adversarially Trained Neural Networks"), section 3 and figure 1.
    Networks are a^T act(W x) with leaky ReLU and a fixed top layer; the data are separable with the margin gamma = 0.3
    in 20 dimensions, with all points at the margin (assumption 3.3); training is algorithm 2, one example a step. The
    paper has no experiment on its theorems, so `paper` is only larger: more seeds, and nu closer to gamma.
    """

    instances: int = 1000  # random instances of each inequality
    omega: float = 1.0  # Frobenius norm of the initial weights

    def findings(self) -> Findings:
        found = Findings(inches=(12, 3.8))
        each = random_instances(self.instances, self.seed)
        gaps = self._theorem_3_2(each, found)
        growth = norm_growth(self.instances, self.seed)
        found.claims.append(
            holds_if(
                "Eq. 6: |W_(t+1)|^2 <= |W_1|^2 + 3 eta t",
                f"{int((growth > ROUNDING).sum())} of {self.instances} random trainings of 50 steps break it",
                bool((growth <= ROUNDING).all()),
            )
        )
        trainings = self._trainings(found)
        self._figure_1(found)
        found.draw = partial(draw, gaps=gaps, trainings=trainings, omega=self.omega)
        return found

    def _theorem_3_2(self, each: Instances, found: Findings) -> Floats:
        gaps, stated = slack(each), slack(each, normalised=True)
        right = gaps + torch.sigmoid(-each.best).numpy()  # the left side is below 1, so it says something below 1 only
        rows: list[tuple[int | float, ...]] = [
            (t, int((gaps[k] < -ROUNDING).sum()), float(gaps[k].min()), int((right[k] < 1).sum()))
            for k, t in enumerate(ITERATIONS)
        ]
        title = f"Theorem 3.2 on {self.instances} random instances with an effective attack"
        found.tables.append(Table(title, ("T", "violations", "least right - left", "right side < 1"), rows))
        for name, values in (("in W, as proved", gaps), ("in W / |W|_F, as stated", stated)):
            broken = int((values < -ROUNDING).any(axis=0).sum())
            claim = f"Theorem 3.2 ({name}): -l'(best) <= -2 l'(found) + 4 nu^2 / (eta T)"
            text = f"{broken} of {self.instances} instances break it at some T <= {ITERATIONS[-1]}"
            found.claims.append(holds_if(claim, f"{text}; least slack {values.min():.2g}", broken == 0))
        return gaps

    def _trainings(self, found: Findings) -> list[Training]:
        n_seeds, nus = (5, (0.1, 0.15, 0.2)) if self.small else (10, (0.1, 0.15, 0.2, 0.25, 0.27))
        settings = [Setting(1.0, nu, 0.05) for nu in nus] + [Setting(0.8, nu, 0.05, beta=0.05) for nu in nus]
        with Progress("reflected-convergence", len(settings), "training") as progress:
            trainings = []
            for setting in settings:
                trainings.append(train(setting, n_seeds, self.seed, self.omega))
                progress.advance(1)
        rows = [
            (
                f"{t.setting.alpha:g}", "-" if t.setting.beta is None else f"{t.setting.beta:g}", MARGIN - t.setting.nu,
                float(np.median(t.hits)), t.expected, t.setting.bound(self.omega),
                t.setting.bound(self.omega) / t.expected,
            )
            for t in trainings
        ]  # fmt: skip
        header = ("alpha", "beta", "gamma - nu", "median iterations", "of the mean error", "bound", "bound / measured")
        title = f"Iterations of algorithm 2 until the error is at most 2 eps = 0.1, {n_seeds} seeds"
        found.tables.append(Table(title, header, rows))
        linear = [t for t in trainings if t.setting.alpha == 1]
        for name, part in (("Corollary 3.5, linear", linear), ("Corollary 3.6", trainings[len(linear) :])):
            looseness = [t.setting.bound(self.omega) / t.expected for t in part]
            text = f"the bound is {min(looseness):.2g} to {max(looseness):.2g} times the iterations needed"
            found.claims.append(holds_if(f"{name}: error 2 eps within the bound", text, min(looseness) >= 1))
        gap = [MARGIN - t.setting.nu for t in linear]
        power = exponent(gap, np.stack([t.hits for t in linear], axis=1))
        claim = "Theorem 3.4: iterations grow at most as (gamma - nu)^-2 (linear case, exact robust error)"
        found.claims.append(holds_if(claim, f"exponent {power} over {n_seeds} seeds", power.high >= -2))
        growth = max(t.growth for t in trainings)
        text = f"largest |W_(t+1)|^2 - |W_1|^2 - 3 eta t: {growth:.3g}"
        found.claims.append(holds_if("Eq. 6 along these trainings", text, growth <= ROUNDING))
        found.notes.append(
            "Corollary 3.6 asks for T_atk >= 2 (1 - alpha)^2 / (beta^2 |W|^2 eps); Theorem 3.4, from which it follows, "
            "gives 2 beta^2 |W|^2 / ((1 - alpha)^2 eps), which is what is used here."
        )
        return trainings

    def _figure_1(self, found: Findings) -> None:
        z = torch.linspace(-8, 8, 16001, dtype=torch.float64)
        wrong = (z < 0).double()
        below, above = bool((-softplus(z) <= wrong).all()), z[softplus(-z) < wrong]
        claim = "Figure 1: the reflected loss is a lower bound of the 0-1 loss"
        found.claims.append(holds_if(claim, "at 16,001 points of [-8, 8]", below))
        text = f"with the natural logarithm it is below for margins in [{above.min():.3f}, 0)"
        found.claims.append(holds_if("Section 2: the cross entropy is an upper bound of it", text, len(above) == 0))


def draw(canvas: Figure, *, gaps: Floats, trainings: Sequence[Training], omega: float) -> None:
    z = torch.linspace(-3, 3, 601)
    axes = canvas.add_subplot(1, 3, 1)
    for name, values in (("0-1", (z < 0).float()), ("cross entropy", softplus(-z)), ("reflected", -softplus(z))):
        axes.plot(z, values, label=name)
    axes.set(title="Losses (figure 1)", xlabel="margin y f(x)", ylabel="loss, nats")
    axes.legend()
    axes = canvas.add_subplot(1, 3, 2)
    for name, level in (("least", 0.0), ("5 % quantile", 0.05), ("median", 0.5)):
        axes.plot(ITERATIONS, np.quantile(gaps, level, axis=1), label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title="Theorem 3.2, random networks, L2", xlabel="iterations T of PGD", ylabel="right - left side")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.legend()
    axes = canvas.add_subplot(1, 3, 3)
    for alpha in (1.0, 0.8):
        part = [t for t in trainings if t.setting.alpha == alpha]
        gap = [MARGIN - t.setting.nu for t in part]
        axes.plot(gap, [t.expected for t in part], marker="o", label=f"measured, alpha = {alpha:g}")
        axes.plot(gap, [t.setting.bound(omega) for t in part], label=f"bound, alpha = {alpha:g}")
    axes.set(title="Algorithm 2, separable data, L2", xlabel="gamma - nu", ylabel="iterations to error 0.1")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend()
