"""The theorems and the figures on images of first-order-adversaries.txt, each measured and given a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from attacks.fosc import fosc
from bench.core import seeds
from bench.core.progress import Progress
from bench.studies.claims import Findings, Floats, Table, exponent, holds_if, paired_less
from bench.studies.first_order.first_order_dynamics import (
    CPU,
    LONGEST,
    curvature_signs,
    shrinking_rate,
    steps_until_near,
)
from bench.studies.first_order.first_order_images import Images, escapes, mnist, random_cnn, train_adversarially
from bench.studies.first_order.first_order_landscape import Landscape, LossName, landscape, maxima_on_circle

IMAGE_SCALES = (0.1, 1.0, 10.0)  # of figure 2
DIM, EPS = 5, 0.05  # of the networks on which the theorems are tested
ETAS = (0.8, 0.4, 0.2)  # step sizes in units of eps^2 (Theorem 3.1 asks for eta < eps^2)
Paths = dict[tuple[float, float], Floats]  # by (scale or epochs, ratio): progress along PGD, (steps + 1, images)


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiments. Except scales and ratios, the paper's are in a supplement that we do not have."""

    networks: int = 5
    width: int = 128
    etas: tuple[float, ...] = ETAS
    shrinking: int = 400  # steps with a shrinking learning rate
    images: int = 20
    ratios: tuple[float, ...] = (0.001, 0.1, 10.0)  # of figure 2
    steps: int = 100  # of figures 2 and 3
    train: int = 500  # images of the adversarial training of figure 3
    epochs: tuple[int, ...] = (0, 2, 20)


SMALL = Plan()
PAPER = Plan(
    networks=20, width=1000, etas=(0.3, 0.1, 0.03), shrinking=3000, images=100,
    ratios=(0.001, 0.01, 0.1, 1.0, 10.0), steps=500, train=10_000, epochs=(0, 1, 3, 10, 40),
)  # fmt: skip


def trajectories(plan: Plan, seed: int, nets: Sequence[Landscape], loss: LossName, found: Findings) -> None:
    """Theorem 3.1, Lemma 4.5 and Corollary 3.1: steps until near an optimum, by step size; then shrinking steps."""
    needed, ends, bad = np.empty((len(nets), len(plan.etas))), list[Tensor](), 0
    open_ = np.empty_like(needed)  # distance of the final points from stationarity: 0 to 2
    with Progress(f"first-order: {loss}", needed.size, "network") as progress:
        for k, column in np.ndindex(*needed.shape):
            space, eta = nets[k], plan.etas[column] * EPS**2
            generator = seeds.generator(CPU, seed, "first-order", "trajectories", k)
            mean, entered, end = steps_until_near(space, space.starts(20, generator), eta)
            needed[k, column], bad = mean, bad + entered
            gradient = space.gradients(end)
            condition = fosc(end, torch.zeros_like(end), gradient, space.threat)
            open_[k, column] = float((condition / (EPS * gradient.norm(dim=1))).max())
            if column == len(plan.etas) - 1:
                ends.append(end)
            progress.advance(1)
    etas = [eta * EPS**2 for eta in plan.etas]
    rows = [
        (eta, float(needed[:, j].mean()), float(needed[:, j].max()), float(open_[:, j].max()))
        for j, eta in enumerate(etas)
    ]
    title = f"Steps of PGD until |Gamma| <= sqrt(eta) on the sphere, {loss}, d = {DIM}, eps = {EPS:g}, 20 starts"
    found.tables.append(
        Table(title, ("eta", "mean steps", "most (of network means)", "FOSC / (eps |grad|) at the ends, most"), rows)
    )
    arrived = bool(np.isfinite(needed).all())
    text = f"on the sphere and near an optimum within {LONGEST} steps: {'all' if arrived else 'not all'} trajectories"
    found.claims.append(holds_if(f"Theorem 3.1 ({loss}): PGD ends on the sphere near a local optimum", text, arrived))
    if arrived:
        power = exponent(etas, needed)
        claim = f"Theorem 3.1 ({loss}): in O(eta^-2) steps"
        found.claims.append(holds_if(claim, f"exponent {power} of eta", power.low >= -2))
    claim = f"Lemma 4.5 ({loss}): no trajectory enters the neighbourhood of the worst points"
    found.claims.append(holds_if(claim, f"{bad} of {20 * needed.size} trajectories do", bad == 0))
    rates = [
        shrinking_rate(space, end[:1], plan.etas[-1] * EPS**2, plan.shrinking)
        for space, end in zip(nets, ends, strict=True)
    ]
    slowest = max(rates)
    text = f"exponent of (z + s): {np.mean(rates):.3g} on average, {slowest:.3g} at worst, {len(rates)} networks"
    claim = f"Corollary 3.1 ({loss}): with eta_s = 2/(beta (s + z)), D_s falls at least as 1/(z + s)"
    found.claims.append(holds_if(claim, text, slowest <= -1))


def single_optimum(plan: Plan, seed: int, loss: LossName, found: Findings) -> None:
    """Theorem 5.1 and section 5.1.1: optima and the angle between gradients, by eps, at |x| = 1."""
    radii = [10.0**k for k in (-2, -1, 0, 1, 2)]
    many, angle = np.empty((plan.networks, len(radii))), np.empty((plan.networks, len(radii)))
    for k, column in np.ndindex(*many.shape):
        at = seeds.derive(seed, "first-order", "radii", k)
        many[k, column] = len(maxima_on_circle(landscape(2, plan.width, 1.0, radii[column], at, loss)))
        space = landscape(DIM, plan.width, 1.0, radii[column], at, loss)
        generator = seeds.generator(CPU, at, "first-order", "angles")
        gradients = normalize(space.output_gradients(space.starts(300, generator)), dim=1)
        angle[k, column] = 1 - float((gradients @ gradients.T).min())
    rows = [
        (eps, float(many[:, j].mean()), int(many[:, j].max()), float(1 - angle[:, j].mean()))
        for j, eps in enumerate(radii)
    ]
    title = f"By eps at |x| = 1, {loss}: local maxima on the circle (d = 2), least cosine of gradients of f (d = {DIM})"
    found.tables.append(Table(title, ("eps", "maxima, mean", "most", "least cosine"), rows))
    claim = f"Theorem 5.1 ({loss}): below a threshold of eps there is one optimum on the sphere, above it more"
    text = f"at most {many[:, 0].max():.0f} at eps {radii[0]:g}, {many[:, -1].mean():.2g} on average at {radii[-1]:g}"
    found.claims.append(holds_if(claim, text, bool(many[:, 0].max() == 1 < many[:, -1].mean())))
    power = exponent(radii[:2], angle[:, :2])
    claim = f"Section 5.1.1 ({loss}): the least cosine between gradients tends to 1 as eps tends to 0"
    found.claims.append(holds_if(claim, f"1 - cosine behaves as eps^p, p = {power}", power.low > 0))


def definite_near_optima(nets: Sequence[Landscape], seed: int, loss: LossName, found: Findings) -> None:
    """Lemma 4.4: near a critical point of the sphere, Xi is definite, so none is a saddle."""
    wrong, total, residual = 0, 0, 0.0
    for k, space in enumerate(nets):
        generator = seeds.generator(CPU, seed, "first-order", "curvature", k)
        signs = curvature_signs(space, generator)
        wrong, total = wrong + signs.wrong, total + signs.points
        residual = max(residual, signs.residual)
    claim = f"Lemma 4.4 ({loss}): Xi is definite wherever the cosine between gradient and normal is at least 0.9"
    text = f"{wrong} of {total} points near an optimum, of {len(nets)} networks, have eigenvalues of both signs"
    found.claims.append(holds_if(claim, f"{text}; |Gamma| at the optima is at most {residual:.2g}", wrong == 0))


def figures_2_and_3(plan: Plan, data_dir: str | None, eta: float, seed: int, found: Findings) -> tuple[Paths, Paths]:
    """Mean progress from a local minimum to the local maximum along PGD on MNIST, by scale and ratio, and epochs."""
    images = mnist(data_dir, max(plan.train, plan.images))
    few = Images(images.x[: plan.images], images.y[: plan.images])
    model = random_cnn(seed)
    follow = partial(escapes, images=few, eta=eta, steps=plan.steps, seed=seed)
    initial = {(s, r): follow(model, scale=s, ratio=r).numpy() for s in IMAGE_SCALES for r in plan.ratios}
    trained, done = dict[tuple[float, float], Floats](), 0
    with Progress("first-order: figure 3", plan.epochs[-1], "epoch") as progress:
        for epochs in plan.epochs:
            train_adversarially(model, images, IMAGE_SCALES[0], epochs=epochs - done, seed=seed + done)
            progress.advance(epochs - done)
            done = epochs
            for ratio in plan.ratios:
                trained[epochs, ratio] = follow(model, scale=IMAGE_SCALES[0], ratio=ratio).numpy()
    for title, key, paths in (
        (f"Figure 2: progress after {plan.steps} steps of a random CNN on MNIST, %, eta {eta:g}", "scale", initial),
        (f"Figure 3: the same during adversarial training, scale {IMAGE_SCALES[0]:g}", "epochs", trained),
    ):
        names = list(dict.fromkeys(name for name, _ in paths))
        rows = [(name, *(float(100 * defined_mean(paths[name, r][-1])) for r in plan.ratios)) for name in names]
        found.tables.append(Table(title, (f"{key} \\ ratio", *(f"{r:g}" for r in plan.ratios)), rows))
    early = {
        name: {key: path.mean(axis=0) for key, path in paths.items()}
        for name, paths in (("2", initial), ("3", trained))
    }
    by_scale = {s: np.mean([early["2"][s, r] for r in plan.ratios], axis=0) for s in IMAGE_SCALES}
    for low, high in pairwise(IMAGE_SCALES):
        difference, p = paired_less(by_scale[high], by_scale[low])
        claim = f"Figure 2: escapes are easier at scale {low:g} than at {high:g}"
        text = f"mean progress larger by {difference.times(-100)} %, Wilcoxon p = {p:.2g}, {len(few.y)} images"
        found.claims.append(holds_if(claim, text, p < 0.05))
    hard = early["2"][IMAGE_SCALES[-1], plan.ratios[0]].mean()
    claim = f"Figure 2: at the largest scale escapes are difficult even at ratio {plan.ratios[0]:g}"
    found.claims.append(holds_if(claim, f"mean progress {100 * hard:.3g} % over {plan.steps} steps", bool(hard < 0.5)))
    before, after = (
        defined_mean(np.array([early["3"][e, r] for r in plan.ratios])) for e in (plan.epochs[0], plan.epochs[-1])
    )
    both = np.isfinite(before) & np.isfinite(after)
    difference, p = paired_less(after[both], before[both])
    claim = f"Figure 3: escapes are harder after {plan.epochs[-1]} epochs of adversarial training than before"
    text = f"mean progress smaller by {difference.times(-100)} %, Wilcoxon p = {p:.2g}, {both.sum()} images"
    found.claims.append(holds_if(claim, text, p < 0.05))
    if flat := sum(int(np.isnan(path[-1]).sum()) for path in (*initial.values(), *trained.values())):
        found.notes.append(
            f"Figures 2 and 3: {flat} trajectories are left out, because the loss of their image is the same at its "
            "minimum and at its maximum in double precision."
        )
    return initial, trained


def defined_mean(values: Floats) -> Floats:
    """The mean over the first axis of the values that are not NaN; NaN where there is none."""
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))
