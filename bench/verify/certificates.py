"""Do the certificates of a finished evaluation hold? Every check is a finding of its own (bench/verify/checks.py)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core import seeds
from bench.core.contracts import Certificate, Certifier
from bench.core.errors import CheckError
from bench.core.example_table import BRACKET, Flags, Table, certificates, certified
from bench.core.records import Record
from bench.core.threat import ThreatModel, checked_norm
from bench.datasets.split import Split
from bench.evaluate.cascade import within
from bench.evaluate.invariants import check_certificates, safe_radius
from bench.verify.checks import Finding, Witnesses

CERTIFICATES = "certificates and witnesses"
SHRUNK = 0.01  # share of a radius that another machine's rounding may take from a search for it
TIMED = 4  # examples of a certifier that is given time for each
PATIENCE = 30.0  # seconds for each of them
CHUNK = 1024  # witnesses at a time


def certified_by(record: Record, table: Table) -> dict[str, tuple[Flags, npt.NDArray[np.float32]]]:
    """Spec of each certifier of the model itself -> the examples that it certified, and the radius that it claims."""
    eps = np.float32(record.threat.eps)
    found = {spec: (column, table[f"radius/{spec}"]) for spec, column in certificates(table).items() if spec != BRACKET}
    if "status" in table:
        for stage in dict.fromkeys(table["decided_by"][table["status"] == "certified"].tolist()):
            proven = (table["decided_by"] == stage) & (table["status"] == "certified")
            found.setdefault(stage, (proven, eps * proven))
    return found


def check_contradictions(test: Split, table: Table, witnesses: Witnesses, record: Record) -> Finding:
    """Is nothing certified that fell, and no witness where a certificate says that nothing is?"""
    try:
        check_certificates(table)
    except CheckError as error:
        return Finding(CERTIFICATES, "failed", str(error))
    threat = _threat(record)
    safe = torch.from_numpy(safe_radius(table, threat)).to(test.y.device)
    index = torch.from_numpy(witnesses["index"]).to(test.y.device)
    for start in range(0, len(index), CHUNK):
        rows = slice(start, start + CHUNK)
        points = torch.from_numpy(witnesses["x_adv"][rows]).to(test.y.device)
        near = threat.distance(points, test.take(index[rows]).x) <= safe[index[rows]]
        if near.any():
            example = int(index[rows][near][0])
            return Finding(CERTIFICATES, "failed", f"test example {example} has a witness inside its certified radius")
    return Finding(CERTIFICATES, "passed", f"{int(certified(table).sum())} certified, none of them broken")


def certify_again(
    model: nn.Module,
    test: Split,
    table: Table,
    record: Record,
    spec: str,
    certifier: Certifier,
    *,
    sample: int,
    seed: int,
    batch_size: int,
) -> Finding:
    """Certify a random sample of the examples that the record says this certifier certified.

    It is a failure where one is not certified again, or not as far. Where its margin is within the rounding error that
    a certificate has to exceed, or the certifier ran out of time, it is a warning.
    """
    name = f"certified again by {spec}"
    proven, radius = certified_by(record, table)[spec]
    claimed = np.flatnonzero(proven | (radius > 0))
    if not len(claimed):
        return Finding(name, "passed", "it certified nothing")
    timed = hasattr(certifier, "seconds")
    n = min(sample, len(claimed), TIMED if timed else sample)
    chosen = np.sort(np.random.default_rng(seed).choice(claimed, n, replace=False))
    lost: list[int] = []
    unsure: list[int] = []
    certifier, threat = within(certifier, PATIENCE), _threat(record)
    for number, rows in enumerate(torch.from_numpy(chosen).to(test.y.device).split(batch_size)):
        batch = test.take(rows)
        found = certifier(model, batch, threat, generator=seeds.generator(batch.x.device, seed, "verify", number))
        here = rows.cpu().numpy()
        short = found.radius.double().cpu() < torch.from_numpy(radius[here]).double() * (1 - SHRUNK)
        gone = torch.from_numpy(proven[here]) & ~found.certified.cpu()
        excused = gone & _near(found).cpu() | timed
        if found.broken is not None:
            excused &= ~found.broken.cpu()
        lost += here[((gone | short) & ~excused).numpy()].tolist()
        unsure += here[((gone | short) & excused).numpy()].tolist()
    if lost:
        evidence = f"seed {seed}: {len(lost)} of {n} are not, the first is test example {lost[0]}"
        return Finding(name, "failed", evidence)
    if unsure:
        what = "ran out of time" if timed else "are within rounding of the edge"
        return Finding(name, "warning", f"seed {seed}: {len(unsure)} of {n} {what}, the first is {unsure[0]}")
    return Finding(name, "passed", f"seed {seed}: all {n} that were tried, of {len(claimed)}")


def _near(found: Certificate) -> Tensor:
    """Whose smallest margin is positive, if not by more than rounding may have done, (B,)."""
    if found.margins is None:
        return torch.zeros_like(found.certified)
    return found.margins.amin(dim=1) > 0


def _threat(record: Record) -> ThreatModel:
    return ThreatModel(checked_norm(record.threat.norm), record.threat.eps)
