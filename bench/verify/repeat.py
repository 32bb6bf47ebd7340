"""Attack, and certify, a random sample of the examples of a finished evaluation again."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from bench.core import seeds
from bench.core.clopper_pearson import upper_bound
from bench.core.contracts import Attack, Batch, Certifier, frozen
from bench.core.example_table import BRACKET, Flags, Table, accuracy, certificates, certified, own_specs, survivors
from bench.evaluate.clean import predict
from bench.evaluate.context import EvalContext
from bench.verify.report import Finding

TOLERATED = 0.05  # share of the examples claimed robust that a stronger attack may break
RADIUS_ROUNDING = 0.01  # share of a radius: on another machine, rounding may shorten the search for it
SEARCHED_SAMPLE = 4  # examples for a certifier that searches


def attack_again(
    context: EvalContext, table: Table, attacks: Mapping[str, Attack], own: Mapping[str, Attack], sample: int
) -> Finding:
    """Attack a random sample of the examples that are claimed robust, under the record's threat model.

    attacks: one attack, by its spec. own: the attacks of the run itself that can be repeated, by spec. Some broken
    examples are a warning, because another attack, or another seed, finds others. If the 95 % Clopper-Pearson interval
    of their share lies above TOLERATED, the run's own attacks are repeated on them: the claim is false (a failure) if
    one of these breaks such a share too, and else the run's attacks are weaker. A broken certified example is a
    failure.
    """
    ((spec, attack),) = attacks.items()
    name = "attacked again"
    certified_rows = certified(table)
    attacked = bool(own_specs(table)) or "status" in table
    if not attacked and not certified_rows.any():
        return Finding(name, "not checkable", "no attack ran under the record's threat model, so nothing is claimed")
    claimed = np.flatnonzero(survivors(table) if attacked else certified_rows)
    if not len(claimed):
        return Finding(name, "passed", "no example is claimed robust")
    chosen = _sample(claimed, sample, context.seed)
    n, broken = len(chosen), _broken_by(context, attack, chosen)
    refuted = chosen[broken & certified_rows[chosen]]
    if len(refuted):
        evidence = f"{len(refuted)} certified examples are broken, the first is test example {refuted[0]}"
        return Finding(name, "failed", evidence)
    share = f"{float(upper_bound(broken.sum(), n, 0.05)):.1%}"
    evidence = f"{broken.sum()} of {n} broken, so at most {share} (95 %) of all {len(claimed)} claimed robust"
    if not broken.any():
        return Finding(name, "passed", evidence)
    evidence += f"; the first is {chosen[broken][0]}"
    if not _exceeds_tolerance(int(broken.sum()), n):
        return Finding(name, "warning", evidence)
    for own_spec, own_attack in own.items():
        again = int(_broken_by(context, own_attack, chosen[broken]).sum())
        if _exceeds_tolerance(again, n):
            return Finding(name, "failed", f"{evidence}; the run's own {own_spec} breaks {again} of {n}")
    return Finding(name, "weaker", f"weaker than {spec}: {evidence}")


def _broken_by(context: EvalContext, attack: Attack, chosen: npt.NDArray[np.int64]) -> Flags:
    """Which of the chosen examples the attack breaks, by a fresh forward pass."""
    results = []
    for batch, generator in _batches(context, chosen):
        x_adv = attack(context.model, batch, context.threat, generator=generator)
        with frozen(context.model):
            misclassified = predict(context.model, x_adv) != batch.y
        results.append((misclassified & context.threat.contains(x_adv, batch.x)).cpu().numpy())
    return np.concatenate(results)


def _exceeds_tolerance(broken: int, n: int) -> bool:
    """Whether the 95 % interval of a share lies above TOLERATED."""
    return accuracy(np.arange(n) < broken).ci95[0] > TOLERATED


def certified_by(table: Table, eps: float) -> dict[str, tuple[Flags, npt.NDArray[np.float32]]]:
    """Spec of each certifier of the model itself -> the examples that it certified, and the radius that it claims."""
    claims = {spec: (flags, table[f"radius/{spec}"]) for spec, flags in certificates(table).items() if spec != BRACKET}
    if "status" in table:
        by_bracket = table["status"] == "certified"
        for stage in dict.fromkeys(table["decided_by"][by_bracket].tolist()):
            column = (table["decided_by"] == stage) & by_bracket
            claims.setdefault(stage, (column, np.float32(eps) * column))
    return claims


def certify_again(context: EvalContext, table: Table, spec: str, certifier: Certifier, sample: int) -> Finding:
    """Certify a random sample of the examples that this certifier certified, by the record.

    It is a failure if one is not certified again, or with a smaller radius. It is a warning if its margin is positive
    but within the rounding error that a certificate must exceed, or if the certifier searches: on another machine it
    may need more nodes.
    """
    name = f"certified again by {spec}"
    column, radius = certified_by(table, float(context.threat.eps))[spec]
    claimed = np.flatnonzero(column | (radius > 0))
    if not len(claimed):
        return Finding(name, "passed", "it certified nothing")
    searches = hasattr(certifier, "nodes")
    chosen = _sample(claimed, min(sample, SEARCHED_SAMPLE) if searches else sample, context.seed)
    failed: list[int] = []
    uncertain: list[int] = []
    for batch, generator in _batches(context, chosen):
        again = certifier(context.model, batch, context.threat, generator=generator)
        index = batch.index.cpu().numpy()
        smaller = again.radius.double().cpu() < torch.from_numpy(radius[index]).double() * (1 - RADIUS_ROUNDING)
        missing = torch.from_numpy(column[index]) & ~again.certified.cpu()
        positive = torch.zeros_like(missing) if again.margins is None else (again.margins.amin(dim=1) > 0).cpu()
        tolerated = missing & positive | searches
        if again.broken is not None:
            tolerated &= ~again.broken.cpu()
        failed += index[((missing | smaller) & ~tolerated).numpy()].tolist()
        uncertain += index[((missing | smaller) & tolerated).numpy()].tolist()
    seed, n = f"seed {context.seed}", len(chosen)
    if failed:
        return Finding(name, "failed", f"{seed}: {len(failed)} of {n} are not, the first is test example {failed[0]}")
    if uncertain:
        reason = "are open after its nodes" if searches else "are within the rounding error"
        return Finding(name, "warning", f"{seed}: {len(uncertain)} of {n} {reason}, the first is {uncertain[0]}")
    return Finding(name, "passed", f"{seed}: all {n} of the sample, of {len(claimed)}")


def _batches(context: EvalContext, chosen: npt.NDArray[np.int64]) -> Iterator[tuple[Batch, torch.Generator]]:
    for number, index in enumerate(torch.from_numpy(chosen).to(context.test.y.device).split(context.batch_size)):
        yield context.test.take(index), seeds.generator(index.device, context.seed, "verify", number)


def _sample(claimed: npt.NDArray[np.int64], size: int, seed: int) -> npt.NDArray[np.int64]:
    """At most `size` of the examples, drawn by the seed, in ascending order."""
    return np.sort(np.random.default_rng(seed).choice(claimed, min(size, len(claimed)), replace=False))
