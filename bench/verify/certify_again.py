"""Repeats the certification of examples that a finished run claims to be certified without a proof."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from bench.core import seeds
from bench.core.contracts import Batch, Certifier
from bench.core.example_table import BRACKET, Flags, Table, certificates
from bench.core.progress import Progress
from bench.core.spec_text import split_spec
from bench.evaluate.bracket import in_rounds
from bench.evaluate.certified import BATCHES
from bench.evaluate.context import EvalContext
from bench.verify.attack_again import Rows
from bench.verify.report import Finding

RADIUS_ROUNDING = 1e-3  # relative; rounding on another machine may make a radius this much smaller
WORK = 1000  # sub-problems per example in this check; examples that a search leaves open are not certified
SAMPLE = 459  # sample size for more claims; it misses all false ones with a probability of 1 % if 1 % are false


@dataclass(frozen=True)
class Recertified:
    """The examples of one certifier: those certified again (or represented by a sample that was), and the rest."""

    confirmed: list[int] = field(default_factory=list)
    unconfirmed: list[int] = field(default_factory=list)


def certified_by(table: Table, eps: float) -> dict[str, tuple[Flags, npt.NDArray[np.float32]]]:
    """Spec of each certifier of the model itself -> the examples that it certified, and the radius that it claims."""
    claims = {spec: (flags, table[f"radius/{spec}"]) for spec, flags in certificates(table).items() if spec != BRACKET}
    if "status" in table:
        by_bracket = table["status"] == "certified"
        for stage in dict.fromkeys(table["decided_by"][by_bracket].tolist()):
            column = (table["decided_by"] == stage) & by_bracket
            claims.setdefault(stage, (column, np.float32(eps) * column))
    return claims


def within_work(certifier: Certifier) -> Certifier:
    """Limit the certifier to WORK sub-problems per example, if it searches: the checker chooses the limit."""
    *_, most = in_rounds(certifier, WORK)
    fewer = min(getattr(certifier, "nodes", 0), getattr(most, "nodes", 0))
    return replace(certifier, nodes=fewer) if fewer else certifier  # type: ignore[call-arg]


def certify_again(
    context: EvalContext,
    table: Table,
    spec: str,
    certifier: Certifier,
    *,
    sample: int | None = SAMPLE,
    proven: frozenset[int] = frozenset(),
) -> tuple[Finding, Recertified]:
    """Repeat the certification of the examples that this certifier certified without a proof, by the record.

    proven: the examples with a proof; a proof covers eps, but no larger radius. If there are more than `sample` others
    (None: no limit), a sample is drawn by the seed; if one of the sample is not certified again, all are tried. The
    check fails if an example has no positive margin, or a smaller radius. It warns if the margin is positive but within
    the rounding error that a certificate must exceed, or if the certifier searches and leaves the example open within
    WORK: the example then does not count as certified.
    """
    name = f"certified again by {spec}"
    column, radius = certified_by(table, float(context.threat.eps))[spec]
    proof_reaches = radius <= np.float32(context.threat.eps)
    claimed = np.array(
        [i for i in np.flatnonzero(column | (radius > 0)).tolist() if not (i in proven and proof_reaches[i])], np.int64
    )
    if not len(claimed):
        reason = "every certificate has a proof, which `bench recheck` checks" if proven else "it certified nothing"
        return Finding(name, "passed", reason), Recertified()
    certifier = within_work(certifier)
    size = len(claimed) if sample is None else min(sample, len(claimed))
    chosen = np.sort(np.random.default_rng(context.seed).choice(claimed, size, replace=False))
    failed, uncertain = _not_given_again(context, spec, certifier, chosen, column, radius)
    if (failed or uncertain) and len(chosen) < len(claimed):
        chosen = claimed
        failed, uncertain = _not_given_again(context, spec, certifier, chosen, column, radius)
    lost = sorted({*failed, *uncertain})
    again = Recertified([i for i in claimed.tolist() if column[i] and i not in lost], [i for i in lost if column[i]])
    seed, n = f"seed {context.seed}", len(chosen)
    if failed:
        return Finding(
            name, "failed", f"{seed}: {len(failed)} of {n} are not, the first is test example {failed[0]}"
        ), again
    if uncertain:
        reason = (
            f"are open after {certifier.nodes} nodes"
            if hasattr(certifier, "nodes")
            else ("are within the rounding error")
        )
        text = f"{seed}: {len(uncertain)} of {n} {reason} and do not count, the first is {uncertain[0]}"
        return Finding(name, "warning", text), again
    return Finding(name, "passed", f"{seed}: all {n} of the sample, of {len(claimed)}"), again


def _not_given_again(
    context: EvalContext,
    spec: str,
    certifier: Certifier,
    chosen: Rows,
    column: Flags,
    radius: npt.NDArray[np.float32],
) -> tuple[list[int], list[int]]:
    """Return the chosen examples that are not certified again or get a smaller radius: failures, and tolerated ones."""
    failed: list[int] = []
    uncertain: list[int] = []
    searches = hasattr(certifier, "nodes")
    with Progress(f"verify: certified again by {spec}", len(chosen), "example", part=True) as progress:
        for batch, generator in _batches(context, chosen, BATCHES.get(split_spec(spec).name)):
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
            progress.advance(len(batch))
    return failed, uncertain


def _batches(context: EvalContext, chosen: Rows, size: int | None) -> Iterator[tuple[Batch, torch.Generator]]:
    size = min(size or context.batch_size, context.batch_size)
    for number, index in enumerate(torch.from_numpy(chosen).to(context.test.y.device).split(size)):
        yield context.test.take(index), seeds.generator(index.device, context.seed, "verify", number)
