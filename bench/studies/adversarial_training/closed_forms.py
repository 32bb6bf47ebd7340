"""`bench study closed-forms`: closed-form statements about adversarial training, compared with simulations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from bench.core import registry, seeds
from bench.core.progress import Progress
from bench.studies.adversarial_training import logistic_forms as logistic
from bench.studies.adversarial_training import mixture_forms as mixtures
from bench.studies.adversarial_training.adversarial_runs import DIGITS, task_of
from bench.studies.adversarial_training.scattered_gradients import (
    Descent,
    change_over_bound,
    derived_bound,
    descend,
    printed_bound,
)
from bench.studies.claims import ClaimsStudy, Findings, Floats, Table, holds_if, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDING = 1e-9
NEAR = 0.01  # of eps-bar, on both sides
EPS = (0.05, 0.1, 0.3)  # of theorem 4.3
GAMMAS = (2.5, 3.0, 4.0, 6.0, 8.0)  # of theorem 4.3
GAP_EPS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of corollary 4.2
SIGNIFICANT = 0.01


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiments."""

    settings: int = 200  # random data sets of each statement
    points: int = 4000  # sample size of a simulated test error
    descent: tuple[int, ...] = (10, 100, 1000, 5000)  # steps of theorem 4.4
    nets: int = 10  # of theorem 4.3
    steps: int = 4000  # T of theorem 4.3, which is about long trainings
    epochs: int = 6  # of the training whose gradient norms enter Eq. 5.27


SMALL = Plan()
PAPER = Plan(points=40_000, descent=(10, 100, 1000, 10_000, 100_000), nets=50, steps=20_000, epochs=30)


class Angles(NamedTuple):
    """Angles to the max-margin direction in degrees, (steps, settings), at eps and without perturbations."""

    adversarial: Floats
    clean: Floats


@registry.study("closed-forms")
@dataclass(frozen=True, kw_only=True)
class ClosedFormsStudy(ClaimsStudy):
    """Adversarial logistic regression, a Gaussian mixture, scattered gradients and a regret: formulas and simulations.

    Thesis, sections 4.2.1, 4.2.2, 4.3.3 and 5.2.3: Theorems 4.1 to 4.5, Lemmas 4.2 to 4.5, Corollary 4.2, Figure 4.2,
    Eq. 5.27. Each statement is tested on random data sets. Theorem 4.2 prints an eps-bar that depends on the weights W
    and grows without bound as W shrinks if there are more than two classes; the loss is convex, so the exact eps from
    which the constant classifier is optimal has a closed form, and the study tests that one
    (logistic_forms.collapse_eps).
    """

    def findings(self) -> Findings:
        plan, found = SMALL if self.small else PAPER, Findings(inches=(12, 7.5))
        with Progress("closed-forms", 6, "statement") as progress:
            self.curvature(plan, found)
            progress.advance(1, "collapse")
            self.collapse(plan, found)
            kinks(found)
            progress.advance(1, "gradients")
            descents = self.scattering(plan, found)
            progress.advance(1, "directions")
            angles = self.direction(plan, found)
            progress.advance(1, "mixtures")
            self.mixture(plan, found)
            progress.advance(1, "regret")
            norms = self.regret(plan, found)
            progress.advance(1)
        found.draw = partial(draw, plan=plan, descents=descents, angles=angles, norms=norms)
        return found

    def rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng(seeds.derive(self.seed, "closed-forms", name))

    def curvature(self, plan: Plan, found: Findings) -> None:
        """Theorem 4.1: the difference of two Hessians is positive semidefinite, for eps_1 < eps_2 < eps-hat."""
        rng, least, falls = self.rng("curvature"), np.empty(plan.settings), 0
        for k in range(plan.settings):
            x, y, w, eps = logistic.separable(rng)
            low, high = np.sort(rng.uniform(0, eps, size=2))
            change = logistic.curvature(x, y, w, high) - logistic.curvature(x, y, w, low)
            least[k] = np.linalg.eigvalsh(change)[0] / np.linalg.norm(x, ord=2) ** 2
            unit, under_l2 = w / np.linalg.norm(w), eps / float(np.linalg.norm(w))
            ends = [np.linalg.eigvalsh(logistic.curvature_with_norm(x, y, unit, e))[-1] for e in (0, 0.9 * under_l2)]
            falls += ends[1] < ends[0]
        claim = "Theorem 4.1: in a separable problem the curvature grows with eps in every direction"
        text = (
            f"least eigenvalue of the difference of Hessians, over |X|^2: {least.min():.2g}, {plan.settings} settings"
        )
        found.claims.append(holds_if(claim, text, bool(least.min() > -ROUNDING)))
        found.notes.append(
            "Theorem 4.1 counts the dual norm of w as the constant 1. With |w| as a function of w (L2), the largest "
            f"eigenvalue falls from eps = 0 to 0.9 eps-hat in {falls} of {plan.settings} settings."
        )

    def collapse(self, plan: Plan, found: Findings) -> None:
        """Theorem 4.2: training finds weights better than 0 just below eps-bar, and none just above it."""
        rng, rows = self.rng("collapse"), list[tuple[str, int, int, int]]()
        for norm, classes in (("Linf", 2), ("Linf", 3), ("Linf", 4), ("L2", 2)):
            count = plan.settings // 4
            trained = constant = 0
            for _ in range(count):
                dim, n = int(rng.integers(1, 5 if norm == "L2" else 4)), 12
                y = rng.permutation(np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)]))
                x = rng.normal(size=(n, dim)) + 1.5 * rng.normal(size=(classes, dim))[y]
                if norm == "L2":
                    bar = logistic.collapse_eps_l2(x, y)
                    ends = [logistic.least_loss_l2(x, y, f * bar, rng) for f in (1 - NEAR, 1 + NEAR)]
                else:
                    bar = logistic.collapse_eps(x, y, classes)
                    ends = [logistic.least_loss(x, y, classes, f * bar, rng) for f in (1 - NEAR, 1 + NEAR)]
                trained += not logistic.collapses(ends[0][0], classes)
                constant += logistic.collapses(ends[1][0], classes)
            rows.append((f"{norm}, K = {classes}", count, trained, constant))
        header = ("classifier", "settings", f"better than constant at {1 - NEAR:g}", f"constant at {1 + NEAR:g}")
        found.tables.append(Table("Theorem 4.2: the least adversarial loss beside eps-bar", header, rows))
        total, below, above = (sum(column) for column in zip(*(row[1:] for row in rows), strict=True))
        found.notes.append("Theorem 4.2: this eps-bar is exact; the printed one is unbounded beyond two classes.")
        claim = f"Theorem 4.2: linear classifiers become constant within {100 * NEAR:g} % of the exact eps-bar"
        text = f"not yet just below it in {below} of {total} settings, and just above it in {above} of {total}"
        found.claims.append(holds_if(claim, text, below == above == total))

    def scattering(self, plan: Plan, found: Findings) -> list[Descent]:
        """Theorem 4.3: the share of long gradients on the path of SGD, against the printed and the derived bound."""
        rng = self.rng("scattering")
        ratios = np.array([change_over_bound(rng) for _ in range(plan.settings)])
        claim = "Proposition 4.2: gradients of L_eps change by at most L |theta_1 - theta_2| + 2 eps L_theta,x"
        most, without = ratios.max(axis=0)
        text = f"at most {most:.3g} of it, {len(ratios)} settings; without its second term {without:.3g}"
        found.claims.append(holds_if(claim, text, bool(most <= 1)))
        descents = [descend(eps, plan.nets, plan.steps, rng) for eps in EPS]
        shares = np.array([[each.share_above(gamma).max() for gamma in GAMMAS] for each in descents])
        bounds = np.array([[printed_bound(gamma), derived_bound(gamma)] for gamma in GAMMAS])
        rows = [(gamma, *map(float, shares[:, k]), *map(float, bounds[k])) for k, gamma in enumerate(GAMMAS)]
        header = ("gamma", *(f"eps {eps:g}" for eps in EPS), "Eq. 4.17", "4 / (gamma - 2)^2")
        title = f"Theorem 4.3: share of steps with |gradient| > gamma eps L, the largest of {plan.nets} networks"
        found.tables.append(Table(title, header, rows))
        slack = float((shares / bounds[:, 0]).max())
        claim = "Theorem 4.3: P(|gradient| > gamma eps L) < 4 / (gamma^2 - 2 gamma + 4)"
        text = f"at most {slack:.2g} times the bound, {len(EPS) * plan.nets} networks, gamma from {GAMMAS[0]:g}"
        found.claims.append(holds_if(claim, text, slack < 1))
        found.notes.append(
            "Theorem 4.3: Eq. 4.24 gives 4 / (gamma - 2)^2; the printed bound has 2 gamma in place of 4 gamma, and is "
            "smaller. It says nothing at eps = 0, and L is estimated from below, which makes it harder to fulfil."
        )
        return descents

    def direction(self, plan: Plan, found: Findings) -> Angles:
        """Lemma 4.2 and Theorem 4.4: the max-margin direction, by solvers and by gradient descent."""
        rng = self.rng("direction")
        x = rng.normal(size=(plan.settings, 6, 12))
        best = np.stack([logistic.max_margin(each) for each in x])
        length = np.linalg.norm(best, axis=1)
        eps = rng.uniform(0.1, 0.9, size=plan.settings) / length
        robust = np.stack([logistic.adversarial_max_margin(a, e) for a, e in zip(x, eps, strict=True)])
        off = float((1 - logistic.cosine(robust, best)).max())
        of_length = np.linalg.norm(robust, axis=1) / (1 + eps * np.linalg.norm(robust, axis=1)) / length - 1
        claim = "Lemma 4.2: the adversarial max-margin vector w' is collinear with w, and w = w' / (1 + eps |w'|)"
        text = f"1 - cosine at most {off:.2g}, lengths within {np.abs(of_length).max():.2g}, {plan.settings} settings"
        found.claims.append(holds_if(claim, text, off < 1e-6 and bool(np.abs(of_length).max() < 1e-4)))
        paths = [logistic.directions(x, each, plan.descent) for each in (eps, np.zeros_like(eps))]
        angles = Angles(*(np.stack([degrees(w, best) for w in path]) for path in paths))
        rows = [
            (t, *(float(values[k].mean()) for values in angles), float(angles.adversarial[k].max()))
            for k, t in enumerate(plan.descent)
        ]
        title = "Theorem 4.4: degrees from the max-margin direction, gradient descent"
        found.tables.append(Table(title, ("steps", "adversarial", "clean", "adversarial, largest"), rows))
        ratio = mean_interval(angles.adversarial[-1] / angles.adversarial[0])
        nearer = int((angles.adversarial[-1] < angles.adversarial[0]).sum())
        claim = "Theorem 4.4: adversarial logistic regression turns to the max-margin direction"
        last, count = plan.descent[-1], plan.settings
        text = f"angle after {last:,} steps: {ratio} of that after {plan.descent[0]}, smaller in {nearer} of {count}"
        found.claims.append(holds_if(claim, text, ratio.high < 0.5 and nearer == count))
        return angles

    def mixture(self, plan: Plan, found: Findings) -> None:
        """Theorem 4.5: Eq. 4.50 against interpolation, Eq. 4.38 against simulated attacks, Lemma 4.4, Corollary 4.2."""
        rng, z, off = self.rng("mixture"), np.empty(plan.settings), 0.0
        for k in range(plan.settings):
            mixture = mixtures.random_mixture(rng)
            r, eps = rng.choice(mixture.r), float(rng.uniform(0, 2))
            w = mixtures.interpolation(mixture.training_points(r), mixture.y)
            cosine = float(logistic.cosine(w, mixture.eta))
            off = max(off, abs(abs(cosine) - mixtures.alignment(mixture, r)))
            formula = mixtures.robust_error(mixture, cosine, eps)
            simulated = mixtures.simulated_error(mixture, w, eps, plan.points, rng)
            z[k] = (simulated - formula) / math.sqrt(formula * (1 - formula) / plan.points)
        claim = "Theorem 4.5: Eq. 4.50 is the cosine between the interpolation and the means"
        found.claims.append(holds_if(claim, f"largest error {off:.2g}, {plan.settings} settings", off < 1e-8))
        inside = int((np.abs(z) <= stats.norm.ppf(0.975)).sum())
        p = stats.binomtest(inside, plan.settings, 0.95).pvalue
        claim = "Theorem 4.5: Eq. 4.38 is the robust error, within the error of a simulation"
        text = (
            f"the formula is in the 95 % interval in {inside} of {plan.settings} settings (binomial test p = {p:.2g})"
        )
        found.claims.append(holds_if(claim, text, bool(p > SIGNIFICANT)))
        count = plan.settings // 2
        wide = [mixtures.random_mixture(rng, wide=True) for _ in range(count)]
        equal = sum(mixtures.interpolates(mixture, mixture.r[0]) for mixture in wide)
        claim = "Lemma 4.4: for M > 10 N log N + N the max-margin vector is the interpolation of least norm"
        found.claims.append(holds_if(claim, f"in {equal} of {count} settings", equal / count >= 0.95))
        gaps = np.array([
            [mixtures.robust_error(m, mixtures.alignment(m, m.r[0]), eps)
             - mixtures.robust_error(m, mixtures.alignment(m, m.r[-1]), eps) for eps in GAP_EPS]
            for m in wide
        ])  # fmt: skip
        premise = np.array([m.r[0] * mixtures.alignment(m, m.r[0]) > GAP_EPS[-1] for m in wide])
        growth = np.diff(gaps, axis=1) > 0
        claim = "Corollary 4.2: the gap between training on hard and on easy components grows with eps"
        text = f"in {int(growth[premise].all(axis=1).sum())} of {int(premise.sum())} settings with r_1 g(r_1) > eps"
        other = f"in {int(growth[~premise].all(axis=1).sum())} of {int((~premise).sum())} others"
        found.claims.append(holds_if(claim, f"{text}, {other}", bool(premise.any() and growth[premise].all())))

    def regret(self, plan: Plan, found: Findings) -> Floats:
        """Eq. 5.27 with the gradient norms sqrt(v_i) at the end of a training of ATAS."""
        loop = task_of(DIGITS, None).loop("atas", eps=0.2, seed=self.seed, epochs=plan.epochs)
        for _ in range(plan.epochs):
            loop.run_epoch()
        norms = loop.bank["v"].sqrt().double().numpy()
        skew, beta = float(norms.mean() / np.sqrt((norms**2).mean())), loop.config.beta
        ratio = (1 - beta) ** -0.25 * skew
        claim = "Eq. 5.27: the regret bound of adaptive steps is smaller, because gradient norms have a long tail"
        text = f"ratio {ratio:.3g} = {(1 - beta) ** -0.25:.3g} (beta {beta:g}) times {skew:.3g} (tail)"
        printed = f"with the printed (1 - beta)^(1/4), the ratio is {(1 - beta) ** 0.25 * skew:.3g}, and always below 1"
        found.notes.append(f"Eq. 5.27: Eq. 5.24 and 5.26 give the factor (1 - beta)^(-1/4), used here; {printed}.")
        share = float((norms < norms.mean()).mean())
        setting = f"digits, {plan.epochs} epochs; {100 * share:.0f} % of the norms are below their mean"
        found.claims.append(holds_if(claim, f"{text}; {setting}", ratio < 1))
        return norms


def kinks(found: Findings) -> None:
    """Figure 4.2: the jump of the derivative at 0, and the position of the minimal loss."""
    theta = np.linspace(-2, 2, 4001)
    step, jumps, least = 1e-6, [], []
    for eps in (0.6, 1.2):
        right, at, left = logistic.scalar_loss(np.array([step, 0, -step]), eps)
        jumps.append(float((right - 2 * at + left) / step))
        least.append(float(theta[logistic.scalar_loss(theta, eps).argmin()]))
    claim = "Figure 4.2: g_eps has a kink of height eps at 0, and 0 is the optimum for eps > |x| = 1 only"
    text = f"jumps {jumps[0]:.3g} and {jumps[1]:.3g} at eps 0.6 and 1.2; optima in [-2, 2]: {least[0]:g}, {least[1]:g}"
    holds = math.isclose(jumps[0], 0.6, abs_tol=1e-4) and math.isclose(jumps[1], 1.2, abs_tol=1e-4)
    found.claims.append(holds_if(claim, text, holds and least[0] == -2 and least[1] == 0))


def degrees(w: Floats, best: Floats) -> Floats:
    return np.asarray(np.degrees(np.arccos(np.clip(logistic.cosine(w, best), -1, 1))))


def draw(canvas: Figure, *, plan: Plan, descents: list[Descent], angles: Angles, norms: Floats) -> None:
    theta = np.linspace(-2, 2, 401)
    for panel, eps in enumerate((0.6, 1.2), start=1):
        axes = canvas.add_subplot(2, 3, panel)
        for label, size in (("g_0", 0.0), (f"g_eps, eps = {eps:g}", eps)):
            axes.plot(theta, logistic.scalar_loss(theta, size), label=label)
        axes.set(title="Figure 4.2: loss at x = 1", xlabel="theta", ylabel="loss, nats")
        axes.legend()
    axes = canvas.add_subplot(2, 3, 3)
    for each in descents:
        axes.plot(each.gradients.mean(axis=0), label=f"eps {each.eps:g}")
    axes.set(title="Theorem 4.3: path of SGD", xlabel="step", ylabel="|gradient| of L_eps", yscale="log")
    axes.legend()
    axes = canvas.add_subplot(2, 3, 4)
    for label, values in angles._asdict().items():
        axes.plot(plan.descent, values.mean(axis=1), marker="o", label=label)
    title = "Theorem 4.4: angle to max-margin"
    axes.set(title=title, xlabel="steps of gradient descent", ylabel="degrees", xscale="log", yscale="log")
    axes.legend()
    axes, r = canvas.add_subplot(2, 3, 5), np.linspace(0.5, 5, 50)
    mixture = mixtures.random_mixture(np.random.default_rng(0), wide=True)
    for eps in GAP_EPS[::2]:
        errors = [mixtures.robust_error(mixture, mixtures.alignment(mixture, each), eps) for each in r]
        axes.plot(r, 100 * np.array(errors), label=f"eps {eps:g}")
    axes.set(title="Theorem 4.5: a mixture, L2", xlabel="r of the training component", ylabel="robust error, %")
    axes.legend()
    axes = canvas.add_subplot(2, 3, 6)
    axes.hist(norms / norms.mean(), bins=60)
    axes.set(title="Eq. 5.27: ATAS on digits, Linf 0.2", xlabel="gradient norm over its mean", ylabel="images")
