"""The sanity checks: each looks for one sign that attacks were misled, and counts the examples that show it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.core import registry, seeds
from bench.core.attack_specs import make_attacks
from bench.core.errors import UserError
from bench.core.example_table import Flags
from bench.core.record_verdict import NEGLIGIBLE, ONE_STEP, SIGNIFICANCE, by_chance
from bench.core.threat import TINY
from bench.sanity.ascent import cross_entropy_gradient
from bench.sanity.model_under_test import (
    AVERAGED,
    REPEAT_NOISE,
    REPEATS,
    RESCALED,
    SMOOTHED,
    STEPS,
    AttackColumn,
    ModelUnderTest,
)

BATCH_NOISE = 1e-2  # of the logits' spread: float32 gives 2e-5, TF32's rounding 4e-4, batch statistics at least 0.1
SUM_NOISE = 1e-3  # of a sum of probabilities
SLACK = 0.1  # share of the clean margin by which one step may beat many, because of rounding in the cross entropy
ALONE = 8  # images that are evaluated alone
QUERIES = ("random-noise", "square:queries=100")  # attacks without gradients that the checks run
BLACK_BOX = ("random-noise", "square")
NOT_BY_GRADIENT = (*BLACK_BOX, "transfer", "autoattack")  # autoattack includes Square
RANK = {"skipped": 0, "passed": 1, "suspect": 2, "unreliable": 3}


class CheckResult(NamedTuple):
    """The fields of a SanityCheck, without its name."""

    outcome: str
    value: float | None
    threshold: float | None
    evidence: str


def skipped(reason: str) -> CheckResult:
    return CheckResult("skipped", None, None, reason)


def worst(results: Iterable[CheckResult]) -> CheckResult:
    return max(results, key=lambda result: (RANK[result.outcome], result.value or 0))


def symptom(tested: ModelUnderTest, hits: Tensor | Flags, among: int, sign: str, *remedies: str) -> CheckResult:
    """An alarm if more examples show a sign, `hits` (n,) bool, than the tolerated share of `among` gives by chance.

    sign: a sentence that the number of examples ends, and that is no alarm for 0 of them.
    """
    n, k, limit = len(hits), int(hits.sum()), by_chance(among)
    evidence = f"{sign} {k} of {n} examples"
    if limit >= n:
        return skipped(f"{evidence}, too few to decide (chance gives up to {limit} of {among} correct examples)")
    if k <= limit:
        return CheckResult("passed", k / n, limit / n, evidence)
    return alarm(tested, k / n, limit / n, evidence, *remedies)


def alarm(tested: ModelUnderTest, value: float, threshold: float, evidence: str, *remedies: str) -> CheckResult:
    """`unreliable` if PGD, without or with remedies, shows that the record counts too many examples as robust.

    Otherwise `suspect`.
    """
    n = len(tested.robust)
    if n == 0:
        return CheckResult("suspect", value, threshold, evidence)
    remedies = remedies or (RESCALED, SMOOTHED, *([AVERAGED] if tested.stochastic else []))
    correct = {"": tested.correct_after_pgd} | {f" with {name}": tested.correct_after(name) for name in remedies}
    broken = int((torch.stack(list(correct.values())).amin(dim=0) < 0.5).sum())
    shares = ", ".join(f"{float(share.mean()):.0%}{remedy}" for remedy, share in correct.items())
    evidence += f"; of {n} that the record counts as robust PGD-{STEPS} leaves {shares}"
    outcome = "unreliable" if broken > by_chance(tested.n_correct) else "suspect"
    return CheckResult(outcome, value, threshold, evidence)


def stochastic(tested: ModelUnderTest) -> CheckResult:
    """Check whether repeated passes differ. Unreliable, unless the record has an attack that averages gradients."""
    n, value = len(tested.first), tested.repeat_difference
    evidence = f"{REPEATS} passes over the same {n} images differ by {value:.1e} of the logits' spread"
    if not tested.stochastic:
        return CheckResult("passed", value, REPEAT_NOISE, evidence)
    result = alarm(tested, value, REPEAT_NOISE, evidence, AVERAGED)
    averages = any(c.own_threat and ("eot" in c.options or c.options.get("version") == "rand") for c in tested.columns)
    return result if averages else result._replace(outcome="unreliable")


def batch_dependent(tested: ModelUnderTest) -> CheckResult:
    """Check whether the logits of an image depend on the other images of its batch, or on its position."""
    if tested.stochastic:
        return skipped("the model is stochastic, so batches cannot be compared")
    x, half, few = tested.first.x, len(tested.first) // 2, min(ALONE, len(tested.first))
    try:
        alone = torch.cat([tested.logits(x[i : i + 1]) for i in range(few)])
    except (RuntimeError, ValueError, UserError) as error:  # batch norm in train mode refuses one image
        return CheckResult("unreliable", None, None, f"a batch of one image fails ({registry.one_line(error)})")
    reference = tested.first_logits
    pairs = {
        "alone": (alone, reference[:few]),
        "in reverse order": (tested.logits(x.flip(0)).flip(0), reference),
        "in half a batch": (tested.logits(x[half:]), reference[half:]),
    }
    value, most = max((tested.difference(*pair), batch) for batch, pair in pairs.items())
    changed = sum(int((a.argmax(dim=1) != b.argmax(dim=1)).sum()) for a, b in pairs.values())
    evidence = (
        f"logits of {len(x)} images, {few} alone, all reversed, half in half a batch, differ by up to "
        f"{value:.1e} of their spread (most {most}), and {changed} predictions change"
    )
    return CheckResult("unreliable" if value > BATCH_NOISE else "passed", value, BATCH_NOISE, evidence)


def not_logits(tested: ModelUnderTest) -> CheckResult:
    """Check whether the model returns probabilities, or log probabilities without declaring it.

    The gradient of the cross entropy of probabilities vanishes where the model is confident, which misleads attacks.
    Log probabilities are logits too; a model that returns them on purpose, such as the logarithm of the mean
    probabilities of an ensemble, has the attribute `returns_log_probabilities = True`.
    """
    z = tested.first_logits.double()
    softmax = (z >= 0).all(dim=1) & ((z.sum(dim=1) - 1).abs() < SUM_NOISE)
    logs = z.logsumexp(dim=1).abs() < SUM_NOISE
    if getattr(tested.model, "returns_log_probabilities", False):
        logs = torch.zeros_like(logs)
    kind = "log probabilities" if logs.any() else "probabilities"
    result = symptom(tested, softmax | logs, len(z), f"outputs are {kind} for", RESCALED)
    if RANK[result.outcome] < RANK["suspect"]:
        return result
    logarithm = (
        "" if logs.any() else "return logits, or the logarithm of the probabilities (of an ensemble: of their mean); "
    )
    advice = f"{logarithm}declare log probabilities with `model.returns_log_probabilities = True`"
    return result._replace(evidence=f"{result.evidence}; {advice}")


def one_class(tested: ModelUnderTest) -> CheckResult:
    """Check whether one class is predicted for all examples, although many have another label.

    A model that finds half of the examples of the other classes would miss n of them with probability 2^-n.
    """
    predictions, labels = tested.table["prediction"], tested.table["label"]
    first, n = int(predictions[0]), len(labels)
    others = int((labels != first).sum())
    if (predictions != first).any():
        return CheckResult("passed", None, None, f"several classes are predicted for {n} examples")
    evidence = f"the model predicts class {first} for all {n} examples, of which {others} have another label"
    if 0.5**others > SIGNIFICANCE:
        return skipped(f"{evidence}, too few to decide")
    return CheckResult("suspect", 1.0, None, f"{evidence}; its training may have failed")


def zero_gradient(tested: ModelUnderTest) -> CheckResult:
    """Check whether the margin itself has no gradient: a layer is constant almost everywhere, or detached."""
    zero = (tested.margin_gradients == 0).all(dim=1)
    result = symptom(tested, zero, tested.n_correct, "margin gradient is zero for", SMOOTHED)
    return result._replace(outcome="unreliable") if result.outcome == "suspect" else result


def vanishing_gradient(tested: ModelUnderTest) -> CheckResult:
    """Check whether the cross entropy's gradient underflows in float32 but the margin's does not: saturated logits."""
    nonzero = (tested.margin_gradients != 0).any(dim=1)
    vanished = tested.gradients(cross_entropy_gradient).abs().amax(dim=1) <= TINY
    sign = "the gradient of the cross entropy vanishes, but not that of the margin, for"
    return symptom(tested, nonzero & vanished, tested.n_correct, sign, RESCALED)


def loss_not_raised(tested: ModelUnderTest) -> CheckResult:
    stuck = tested.margins(tested.pgd) >= tested.margins(tested.robust.x)
    return symptom(tested, stuck, tested.n_correct, f"PGD-{STEPS} does not raise the loss of")


def one_step_better(tested: ModelUnderTest) -> CheckResult:
    one, many = tested.margins(tested.ascend(cross_entropy_gradient, steps=1)), tested.margins(tested.pgd)
    worse = many > one + SLACK * tested.margins(tested.robust.x)
    return symptom(tested, worse, tested.n_correct, f"one step does more harm than {STEPS} to")


def twice_eps_no_better(tested: ModelUnderTest) -> CheckResult:
    if 2 * tested.eps > tested.threat.largest_eps(tested.test.image_shape):
        return skipped("twice eps is more than the box")
    wide = tested.margins(tested.ascend(cross_entropy_gradient, eps=2 * tested.eps))
    return symptom(tested, wide >= tested.margins(tested.pgd), tested.n_correct, "twice eps does no more harm to")


def huge_eps_survived(tested: ModelUnderTest) -> CheckResult:
    points = tested.ascend(cross_entropy_gradient, eps=tested.threat.largest_eps(tested.test.image_shape))
    correct = tested.share_correct(points) >= 0.5
    return symptom(tested, correct, tested.n_correct, f"PGD-{STEPS} in the whole box does not break")


def queries_better(tested: ModelUnderTest) -> CheckResult:
    """Check whether attacks that use no gradient break what PGD leaves."""
    survived = tested.correct_after_pgd >= 0.5
    broken, specs = torch.zeros_like(survived), []
    for spec in QUERIES:
        try:
            (planned,) = make_attacks([spec], tested.threat).values()
            planned.attack.check_fits(tested.threat, tested.test.image_shape, tested.first_logits.shape[1])
        except UserError:  # not registered, or not for this norm or shape
            continue
        generator = seeds.generator(survived.device, tested.seed, "sanity", spec)
        broken |= tested.share_correct(tested.attacked(planned.attack, generator)) < 0.5
        specs.append(spec)
    if not specs:
        return skipped(f"none of {', '.join(QUERIES)} supports this threat model and these images")
    sign = f"after PGD-{STEPS}, {' and '.join(specs)} break another"
    return symptom(tested, broken[survived], tested.n_correct, sign)


def weaker_attack_breaks_more(
    tested: ModelUnderTest, pairs: Iterable[tuple[AttackColumn, AttackColumn]], needs: str
) -> CheckResult:
    """Test the worst pair (weaker, stronger): an exact sign test on the examples that only one of the two breaks.

    needs: the attacks that make a pair, for a table that has none.
    """
    results = [skipped(f"needs {needs}")]
    n = int(tested.table["clean"].sum())
    for weak, strong in pairs:
        only_weak, only_strong = int((strong.robust & ~weak.robust).sum()), int((weak.robust & ~strong.robust).sum())
        either, lead = only_weak + only_strong, only_weak - only_strong
        limit = max(2 * by_chance(either, 0.5) - either, NEGLIGIBLE * n)
        evidence = f"of {n} examples only {weak.spec} breaks {only_weak}, only {strong.spec} breaks {only_strong}"
        passed = CheckResult("passed", lead / n, limit / n, evidence)
        results.append(passed if lead <= limit else alarm(tested, lead / n, limit / n, evidence))
    return worst(results)


def fewer_steps_better(tested: ModelUnderTest) -> CheckResult:
    pairs = _pairs(tested.columns, "steps", lambda column: float(column.options.get("steps", "nan")))
    fgsm, pgd = ([c for c in tested.columns if c.own_threat and c.name == name] for name in ("fgsm", "pgd"))
    needs = "an attack with two numbers of steps, or FGSM and PGD"
    return weaker_attack_breaks_more(tested, [*pairs, *product(fgsm, pgd)], needs)


def smaller_eps_better(tested: ModelUnderTest) -> CheckResult:
    eps = tested.eps
    pairs = _pairs(tested.columns, "eps", lambda column: float(column.options.get("eps", eps)))
    return weaker_attack_breaks_more(tested, pairs, "an attack at two eps")


def _pairs(
    columns: Sequence[AttackColumn], option: str, value: Callable[[AttackColumn], float]
) -> Iterable[tuple[AttackColumn, AttackColumn]]:
    """Columns of one attack that differ in one option only, the one with the smaller value first."""

    def rest(column: AttackColumn) -> tuple[str, dict[str, str]]:
        return column.name, {key: text for key, text in column.options.items() if key != option}

    for a, b in combinations(columns, 2):
        if rest(a) == rest(b) and (value(a) < value(b) or value(b) < value(a)):
            yield (a, b) if value(a) < value(b) else (b, a)


def against_white_box(tested: ModelUnderTest, names: tuple[str, ...]) -> CheckResult:
    """An alarm if attacks of these names break what all white-box attacks leave, if one of those has several steps."""
    own = [column for column in tested.columns if column.own_threat]
    others = [column for column in own if column.name.startswith(names)]
    white = [column for column in own if not column.name.startswith(NOT_BY_GRADIENT)]
    if not others or all(column.name.startswith(ONE_STEP) for column in white):
        kind = "black-box" if names == BLACK_BOX else "transfer"
        return skipped(f"needs a {kind} and a gradient attack of several steps")
    survived = np.logical_and.reduce([column.robust for column in white])
    broken = ~np.logical_and.reduce([column.robust for column in others])
    first, second = ("+".join(column.spec for column in columns) for columns in (others, white))
    n_correct = int(tested.table["clean"].sum())
    return symptom(tested, broken[survived], n_correct, f"after {second}, {first} breaks another")


Check = Callable[[ModelUnderTest], CheckResult]
MODEL_CHECKS: dict[str, Check] = {
    "stochastic": stochastic, "batch-dependent": batch_dependent, "not-logits": not_logits, "one-class": one_class,
}  # fmt: skip
ATTACK_CHECKS: dict[str, Check] = {
    "zero-gradient": zero_gradient, "vanishing-gradient": vanishing_gradient, "loss-not-raised": loss_not_raised,
    "one-step-better": one_step_better, "twice-eps-no-better": twice_eps_no_better,
    "huge-eps-survived": huge_eps_survived, "queries-better": queries_better,
}  # fmt: skip
TABLE_CHECKS: dict[str, Check] = {
    "fewer-steps-better": fewer_steps_better, "smaller-eps-better": smaller_eps_better,
    "black-box-better": partial(against_white_box, names=BLACK_BOX),
    "transfer-better": partial(against_white_box, names=("transfer",)),
}  # fmt: skip
