"""The sanity checks: each looks for one sign that attacks were misled, and says on how many examples it was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.core import registry, seeds
from bench.core.attack_specs import make_attacks
from bench.core.errors import UserError
from bench.core.threat import TINY
from bench.sanity.attacks import cross_entropy
from bench.sanity.probe import PASSES, REPEAT_NOISE, REPEATS, STEPS, Column, Probe

SIGNIFICANCE = 1e-3  # of each check: with a dozen of them, about one sound record in a hundred at the tolerated share
TOLERATED = 0.05  # share of the examples that may show a sign; 50 sound models: 0.03, and 0.09 for what Square finds
NEGLIGIBLE = 0.01  # share of the examples by which a weaker attack may win; random starts gave 0.015 of 200 examples
BATCH_NOISE = 1e-2  # of the logits' spread; float32 gives 2e-5, TF32's rounding 4e-4, batch statistics 0.1 and more
SUM_NOISE = 1e-3  # of probabilities around 1
SLACK = 0.1  # of the clean margin, by which one step may do more harm than many: rounding of the cross entropy does
ALONE = 8  # images that are shown alone
QUERIES = ("random-noise", "square:queries=100")  # attacks without gradients that the checks run
BLACK_BOX = ("random-noise", "square")
NOT_BY_GRADIENT = (*BLACK_BOX, "transfer", "autoattack")  # autoattack's columns hold Square's finds, too
ONE_STEP = ("fgsm", "single-step")
RANK = {"skipped": 0, "passed": 1, "suspect": 2, "unreliable": 3}

REMEDIES: dict[str, Callable[[Probe], Tensor]] = {
    "rescaled logits": lambda probe: probe.after_rescaled,
    "a smoothed gradient": lambda probe: probe.after_smoothed,
    f"the mean gradient of {PASSES} passes": lambda probe: probe.after_averaged,
}
RESCALED, SMOOTHED, AVERAGED = REMEDIES


class Finding(NamedTuple):
    """A SanityCheck but for its name."""

    outcome: str
    value: float | None
    threshold: float | None
    evidence: str


def skipped(why: str) -> Finding:
    return Finding("skipped", None, None, why)


def worst(findings: Iterable[Finding]) -> Finding:
    return max(findings, key=lambda finding: (RANK[finding.outcome], finding.value or 0))


def by_chance(n: int, rate: float = TOLERATED) -> int:
    """The most of n examples that show a sign of this rate, save with probability SIGNIFICANCE."""
    from scipy.special import betainc  # here, for it costs a tenth of a second

    more = np.arange(1, n + 1)
    return int((betainc(more, n - more + 1.0, rate) > SIGNIFICANCE).sum())  # P(at least `more` of n)


def symptom(
    probe: Probe,
    hits: Tensor | npt.NDArray[np.bool_],
    among: int,
    what: str,
    remedies: Sequence[str] = (),
    alarm: str = "suspect",
) -> Finding:
    """An alarm where more examples show a sign, `hits` (n,) bool, than the tolerated share of `among` by chance.

    Says then what was tried, and is `unreliable` where that shows that the record counts too many as robust.
    """
    n, k, limit = len(hits), int(hits.sum()), by_chance(among)
    evidence = f"{what}: {k} of {n} examples"
    if limit >= n:
        return skipped(f"{evidence}, too few to tell ({limit} of {among} right ones may by chance)")
    if k <= limit:
        return Finding("passed", k / n, limit / n, evidence)
    text, overstated = tried(probe, remedies)
    return Finding("unreliable" if overstated else alarm, k / n, limit / n, evidence + text)


def tried(probe: Probe, remedies: Sequence[str] = ()) -> tuple[str, bool]:
    """What PGD leaves of the standing examples, without and with remedies; whether the record counts too many."""
    remedies = remedies or (RESCALED, SMOOTHED, *([AVERAGED] if probe.stochastic else []))
    n = len(probe.standing)
    if n == 0:
        return "", False
    left = {"": probe.after_plain} | {f" with {how}": REMEDIES[how](probe) for how in remedies}
    fell = int((torch.stack(list(left.values())).amin(dim=0) < 0.5).sum())
    shares = ", ".join(f"{float(right.mean()):.0%}{how}" for how, right in left.items())
    return f"; of {n} that the record counts as robust PGD-{STEPS} leaves {shares}", fell > by_chance(probe.among)


# The model's answers -----------------------------------------------------------------------------------------------


def stochastic(probe: Probe) -> Finding:
    """Passes over the same images differ. Unreliable, unless the record has an attack that averages its gradient."""
    n, moved = len(probe.shown), probe.unrest
    what = f"{REPEATS} passes over the same {n} images differ by {moved:.1e} of the logits' spread"
    if not probe.stochastic:
        return Finding("passed", moved, REPEAT_NOISE, what)
    text, overstated = tried(probe, [AVERAGED])
    averages = any(c.own and ("eot" in c.options or c.options.get("version") == "rand") for c in probe.columns)
    return Finding("suspect" if averages and not overstated else "unreliable", moved, REPEAT_NOISE, what + text)


def batch_dependent(probe: Probe) -> Finding:
    """An image's logits depend on its company, or on its place in the batch."""
    if probe.stochastic:
        return skipped("the model answers differently each time, so batches cannot be compared")
    x, half, few = probe.shown.x, len(probe.shown) // 2, min(ALONE, len(probe.shown))
    try:
        alone = torch.cat([probe.answers(x[i : i + 1]) for i in range(few)])
    except (RuntimeError, ValueError) as error:  # batch norm in train mode refuses one image
        return Finding("unreliable", None, None, f"an image alone fails ({registry.one_line(error)})")
    others = {
        "alone": (alone, probe.logits[:few]),
        "in reverse order": (probe.answers(x.flip(0)).flip(0), probe.logits),
        "in half a batch": (probe.answers(x[half:]), probe.logits[half:]),
    }
    moved = {how: probe.moved(*pair) for how, pair in others.items()}
    changed = sum(int((a.argmax(dim=1) != b.argmax(dim=1)).sum()) for a, b in others.values())
    how = max(moved, key=lambda how: moved[how])
    what = (
        f"logits of {len(x)} images, {few} alone, all reversed, half in half a batch, move by up to "
        f"{moved[how]:.1e} of their spread (most {how}), and {changed} predictions change"
    )
    return Finding("unreliable" if moved[how] > BATCH_NOISE else "passed", moved[how], BATCH_NOISE, what)


def not_logits(probe: Probe) -> Finding:
    """The model returns probabilities, or log probabilities without saying so."""
    z = probe.logits.double()
    softmax = (z >= 0).all(dim=1) & ((z.sum(dim=1) - 1).abs() < SUM_NOISE)
    logs = z.logsumexp(dim=1).abs() < SUM_NOISE
    if getattr(probe.model, "returns_log_probabilities", False):
        logs = torch.zeros_like(logs)
    kind = "log probabilities (returns_log_probabilities = True says so)" if logs.any() else "probabilities"
    return symptom(probe, softmax | logs, len(z), f"the outputs are {kind}", [RESCALED])


# The attacks, on examples that the record counts as robust ---------------------------------------------------------


def zero_gradient(probe: Probe) -> Finding:
    """The margin itself has no gradient: a layer that is constant almost everywhere, or cut off."""
    zero = (probe.margin_slopes == 0).all(dim=1)
    return symptom(probe, zero, probe.among, "the margin has no gradient", [SMOOTHED], alarm="unreliable")


def vanishing_gradient(probe: Probe) -> Finding:
    """The margin has a gradient, but the cross entropy's is lost in float32: saturated logits."""
    alive = (probe.margin_slopes != 0).any(dim=1)
    gone = probe.slopes(cross_entropy).abs().amax(dim=1) <= TINY
    return symptom(probe, alive & gone, probe.among, "the cross entropy's gradient vanishes", [RESCALED])


def loss_not_raised(probe: Probe) -> Finding:
    stuck = probe.margins(probe.plain) >= probe.margins(probe.standing.x)
    return symptom(probe, stuck, probe.among, f"PGD-{STEPS} does not raise the loss")


def one_step_better(probe: Probe) -> Finding:
    one, many = probe.margins(probe.climb(cross_entropy, steps=1)), probe.margins(probe.plain)
    worse = many > one + SLACK * probe.margins(probe.standing.x)
    return symptom(probe, worse, probe.among, f"one step does more harm than {STEPS}")


def twice_eps_no_better(probe: Probe) -> Finding:
    if 2 * probe.eps > probe.whole_box:
        return skipped("twice eps is more than the box")
    wide = probe.margins(probe.climb(cross_entropy, eps=2 * probe.eps))
    return symptom(probe, wide >= probe.margins(probe.plain), probe.among, "twice eps does no more harm")


def huge_eps_survived(probe: Probe) -> Finding:
    right = probe.right(probe.climb(cross_entropy, eps=probe.whole_box)) >= 0.5
    return symptom(probe, right, probe.among, f"PGD-{STEPS} in the whole box does not break")


def queries_better(probe: Probe) -> Finding:
    """Attacks that see no gradient break what PGD leaves."""
    stands = probe.after_plain >= 0.5
    fell, ran = torch.zeros_like(stands), []
    for spec in QUERIES:
        try:
            (attack,) = make_attacks([spec], probe.threat).values()
            attack.check_fits(probe.test.image_shape, probe.logits.shape[1])
        except UserError:  # there is none of this name, norm or shape
            continue
        generator = seeds.generator(stands.device, probe.seed, "sanity", spec)
        fell |= probe.right(probe.attacked(attack, generator)) < 0.5
        ran.append(spec)
    if not ran:
        return skipped(f"none of {', '.join(QUERIES)} fits this threat model and these images")
    return symptom(probe, fell[stands], probe.among, f"{' and '.join(ran)} break what PGD-{STEPS} leaves")


# The table's columns -----------------------------------------------------------------------------------------------


def weaker_wins(probe: Probe, pairs: Iterable[tuple[Column, Column]]) -> Finding:
    """The worst of pairs (weaker, stronger): an exact sign test of the examples that only one of the two breaks."""
    found = [skipped("the table has no two such attacks")]
    n = int(probe.table["clean"].sum())
    for weak, strong in pairs:
        only_weak, only_strong = int((strong.robust & ~weak.robust).sum()), int((weak.robust & ~strong.robust).sum())
        either, lead = only_weak + only_strong, only_weak - only_strong
        limit = max(2 * by_chance(either, 0.5) - either, NEGLIGIBLE * n)
        evidence = f"of {n} examples {only_weak} fall to {weak.spec} alone, {only_strong} to {strong.spec} alone"
        outcome = "passed"
        if lead > limit:
            text, overstated = tried(probe)
            outcome, evidence = "unreliable" if overstated else "suspect", evidence + text
        found.append(Finding(outcome, lead / n, limit / n, evidence))
    return worst(found)


def fewer_steps_better(probe: Probe) -> Finding:
    pairs = _pairs(probe.columns, "steps", lambda column: float(column.options.get("steps", "nan")))
    fgsm, pgd = ([c for c in probe.columns if c.own and c.name == name] for name in ("fgsm", "pgd"))
    return weaker_wins(probe, [*pairs, *product(fgsm, pgd)])


def smaller_eps_better(probe: Probe) -> Finding:
    return weaker_wins(probe, _pairs(probe.columns, "eps", lambda column: float(column.options.get("eps", probe.eps))))


def _pairs(columns: Sequence[Column], option: str, value: Callable[[Column], float]) -> Iterable[tuple[Column, Column]]:
    """Columns of one attack that differ in one option only, the one with less of it first."""

    def rest(column: Column) -> tuple[str, dict[str, str]]:
        return column.name, {key: text for key, text in column.options.items() if key != option}

    for a, b in combinations(columns, 2):
        if rest(a) == rest(b) and (value(a) < value(b) or value(b) < value(a)):
            yield (a, b) if value(a) < value(b) else (b, a)


def black_box_better(probe: Probe) -> Finding:
    return against_white_box(probe, [c for c in probe.columns if c.own and c.name.startswith(BLACK_BOX)])


def transfer_better(probe: Probe) -> Finding:
    return against_white_box(probe, [c for c in probe.columns if c.own and c.name.startswith("transfer")])


def against_white_box(probe: Probe, others: Sequence[Column]) -> Finding:
    """An alarm where other attacks break what all white-box ones leave, one of them at least of several steps."""
    white = [c for c in probe.columns if c.own and not c.name.startswith(NOT_BY_GRADIENT)]
    if not others or all(c.name.startswith(ONE_STEP) for c in white):
        return skipped("the table has no two such attacks")
    stands = np.logical_and.reduce([c.robust for c in white])
    fell = ~np.logical_and.reduce([c.robust for c in others])
    names = ["+".join(c.spec for c in some) for some in (others, white)]
    what = f"{names[0]} breaks what {names[1]} leaves"
    return symptom(probe, fell[stands], int(probe.table["clean"].sum()), what)


Check = Callable[[Probe], Finding]
OF_THE_MODEL: dict[str, Check] = {
    "stochastic": stochastic, "batch-dependent": batch_dependent, "not-logits": not_logits,
}  # fmt: skip
OF_THE_ATTACKS: dict[str, Check] = {
    "zero-gradient": zero_gradient, "vanishing-gradient": vanishing_gradient, "loss-not-raised": loss_not_raised,
    "one-step-better": one_step_better, "twice-eps-no-better": twice_eps_no_better,
    "huge-eps-survived": huge_eps_survived, "queries-better": queries_better,
}  # fmt: skip
OF_THE_TABLE: dict[str, Check] = {
    "fewer-steps-better": fewer_steps_better, "smaller-eps-better": smaller_eps_better,
    "black-box-better": black_box_better, "transfer-better": transfer_better,
}  # fmt: skip
