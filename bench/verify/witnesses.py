"""Checks that the witnesses of a run are adversarial, and agree with its table and its certificates."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.core.errors import CheckError
from bench.core.example_table import Flags, Table, Threat, broken_by, certified, threat_of
from bench.core.records import Record
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.context import EvalContext
from bench.evaluate.invariants import certified_radius, check_certificates
from bench.verify.report import Finding, finding_of
from bench.verify.table_checks import NEAR_TIE, logits_of, relative_gap

Witnesses = dict[str, npt.NDArray[Any]]

WITNESS_CHECKS = (
    "every broken example has a witness",
    "witnesses lie within eps",
    "witnesses lie in the box",
    "witnesses are misclassified",
)
CERTIFICATES = "certificates and witnesses"
CHUNK = 1024  # witnesses at a time


def check_witnesses(context: EvalContext, table: Table, record: Record, witnesses: Witnesses) -> list[Finding]:
    """Check that each broken example has one witness, within the threat model, that a fresh forward pass misclassifies.

    Distances are in float64, with the tolerance of the threat model.
    """
    problem = _malformed(witnesses, table, context.test.image_shape)
    if problem:
        return [Finding(name, "failed", problem) for name in WITNESS_CHECKS]
    complete = _check_completeness(record, table, witnesses)
    index, points = witnesses["index"], witnesses["x_adv"]
    if not len(index):
        return [complete, *(Finding(name, "passed", "there are none") for name in WITNESS_CHECKS[1:])]
    claims, checked = [threat_of(spec, record.threat) for spec in witnesses["attack"].tolist()], []
    for claim in dict.fromkeys(claims):
        rows = np.array([other == claim for other in claims])
        own = replace(context, threat=ThreatModel.from_record(claim))
        checked.append(check_points(own, index[rows], points[rows]))
    too_far, out_of_box, correct = (
        [i for each in checked for i in each.index[getattr(each, problem)].tolist()]
        for problem in ("too_far", "out_of_box", "correct")
    )
    ties = sum(int(each.near_tie.sum()) for each in checked)
    farthest = max(float(each.distance.max()) for each in checked)
    within_box = f"pixels from {points.min():g} to {points.max():g}"
    return [
        complete,
        finding_of(too_far, WITNESS_CHECKS[1], "are outside", f"the farthest is at {farthest:.7f} eps"),
        finding_of(out_of_box, WITNESS_CHECKS[2], "leave [0, 1]", within_box),
        Finding(WITNESS_CHECKS[3], "warning", f"{ties} are near ties that the model now classifies correctly")
        if ties and not correct
        else finding_of(correct, WITNESS_CHECKS[3], "are classified correctly", f"all {len(index)} are"),
    ]


@dataclass(frozen=True)
class PointChecks:
    """For each of some points (m,): its test example, its distance in units of eps, and why it is not adversarial."""

    index: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]
    too_far: Flags
    out_of_box: Flags
    correct: Flags  # classified correctly, or with a logit that is not finite
    near_tie: Flags  # classified correctly, but so narrowly that another machine may differ

    @property
    def adversarial(self) -> Flags:
        """The points that are adversarial examples on any machine."""
        return ~(self.too_far | self.out_of_box | self.correct | self.near_tie)


def check_points(context: EvalContext, index: npt.NDArray[np.int64], x_adv: npt.NDArray[np.float32]) -> PointChecks:
    """Check x_adv (m,C,H,W), m >= 1, against the threat model around test examples `index` (m,), and the model."""
    device, threat = context.test.y.device, context.threat
    chunks = []
    for start in range(0, len(index), context.batch_size):
        rows = slice(start, start + context.batch_size)
        batch = context.test.take(torch.from_numpy(index[rows]).to(device))
        points = torch.from_numpy(x_adv[rows]).to(device)
        logits = logits_of(context.model, points)
        correct = (logits.argmax(dim=1) == batch.y) | ~logits.isfinite().all(dim=1)
        other = logits.scatter(1, batch.y[:, None], -torch.inf).argmax(dim=1)
        near_tie = correct & (relative_gap(logits, other) <= NEAR_TIE)
        too_far = ~replace(threat, box=None).contains(points, batch.x)
        out_of_box = (threat.clamp(points) != points).flatten(1).any(dim=1)
        columns = (threat.distance(points, batch.x) / threat.eps, too_far, out_of_box, correct & ~near_tie, near_tie)
        chunks.append([column.cpu().numpy() for column in columns])
    return PointChecks(index, *(np.concatenate(column) for column in zip(*chunks, strict=True)))


def check_contradictions(test: Split, table: Table, witnesses: Witnesses, record: Record) -> Finding:
    """Check that no certified example is broken, and that no witness is within a certified radius."""
    try:
        check_certificates(table)
    except CheckError as error:
        return Finding(CERTIFICATES, "failed", str(error))
    threat = ThreatModel.from_record(record.threat)
    radius = torch.from_numpy(certified_radius(table, threat)).to(test.y.device)
    index = torch.from_numpy(witnesses["index"]).to(test.y.device)
    for start in range(0, len(index), CHUNK):
        rows = slice(start, start + CHUNK)
        points = torch.from_numpy(witnesses["x_adv"][rows]).to(test.y.device)
        inside = threat.distance(points, test.take(index[rows]).x) <= radius[index[rows]]
        if inside.any():
            example = int(index[rows][inside][0])
            return Finding(CERTIFICATES, "failed", f"test example {example} has a witness inside its certified radius")
    return Finding(CERTIFICATES, "passed", f"{int(certified(table).sum())} certified, none of them broken")


def _malformed(witnesses: Witnesses, table: Table, shape: tuple[int, int, int]) -> str | None:
    """Say why the arrays are not witnesses of this table; None if they are."""
    missing = {"index", "x_adv", "attack"} - set(witnesses)
    if missing:
        return f"the file of witnesses has no array '{min(missing)}'"
    index, x_adv, attack = witnesses["index"], witnesses["x_adv"], witnesses["attack"]
    n = index.size
    if index.dtype != np.int64 or x_adv.dtype != np.float32 or attack.dtype.kind != "U":
        return f"index, x_adv, attack are {index.dtype}, {x_adv.dtype}, {attack.dtype}; not int64, float32, strings"
    if index.shape != (n,) or attack.shape != (n,) or (n and x_adv.shape != (n, *shape)):
        return f"index {index.shape}, x_adv {x_adv.shape} and attack {attack.shape} do not fit images {shape}"
    unknown = set(attack.tolist()) - set(broken_by(table))
    if unknown:
        return f"there are witnesses of '{min(unknown)}', which is not an attack of the table"
    if n and not (index.min() >= 0 and index.max() < len(table["index"])):
        return "there are witnesses of examples that the table does not have"
    return None


def _check_completeness(record: Record, table: Table, witnesses: Witnesses) -> Finding:
    """Check that each broken (example, threat model) of the table has one witness, from an attack that broke it."""
    name, broken = WITNESS_CHECKS[0], broken_by(table)
    needed: set[tuple[int, Threat]] = set()
    for source, column in broken.items():
        needed |= {(i, threat_of(source, record.threat)) for i in np.flatnonzero(column).tolist()}
    pairs = list(zip(witnesses["index"].tolist(), witnesses["attack"].tolist(), strict=True))
    given = [(i, threat_of(source, record.threat)) for i, source in pairs]
    survived = {i for i, source in pairs if table["clean"][i] and not broken[source][i]}
    for examples, problem in (
        ({i for i, _ in needed - set(given)}, "are broken without a witness"),
        ({i for i, _ in set(given) - needed}, "have a witness but are robust, or clean errors"),
        ({i for (i, _), times in Counter(given).items() if times > 1}, "have several witnesses"),
        (survived, "survived the attack of their witness"),
    ):
        if examples:
            return Finding(name, "failed", f"{len(examples)} examples {problem}, the first is {min(examples)}")
    return Finding(name, "passed", f"{len(given)} broken, {len(given)} witnesses")
