"""Checks the evidence of a finished run: a proof for each certified example, a witness for each broken one.

Examples that a contest broke later have witnesses too (leaderboard/recheck/contests.py).

Proofs and witnesses refer to the network that the weights file and network.json define. It must predict what the table
says. `bench verify`, which builds the model, checks that network.json describes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from bench.core.errors import CheckError, UserError
from bench.core.example_table import (
    BRACKET,
    Threat,
    attack_specs,
    broken_by,
    certificates,
    certified,
    threat_of,
)
from bench.core.files import read_arrays
from bench.core.network_format import read_description
from bench.core.proof_format import proofs_from
from bench.core.record_command import absent_files
from bench.core.record_files import NETWORK, PROOFS, WITNESSES, read_run
from bench.core.spec_text import split_spec
from leaderboard.recheck.contests import broken_in_contests
from leaderboard.recheck.layers import Vector
from leaderboard.recheck.network import Network
from leaderboard.recheck.proofs import check_proof
from leaderboard.recheck.regions import Region

ROUNDING = 1e-5  # of the largest logit: float32 may predict another class if two logits are this close
SOLVERS = ("exact",)  # certifiers whose certificates are claims of a solver
AT_ONCE = 500  # images
CERTIFIED = ("proven", "proof fails", "trusted solver", "no proof")
BROKEN = ("witness valid", "witness invalid", "no witness", "witness not checkable")
NEEDED = ("weights", "network")  # files without which neither proofs nor witnesses can be checked
NOT_DESCRIBED = "the run has no network.json, which runs with --certifiers have; `bench verify` checks its witnesses"


class Example(msgspec.Struct, frozen=True):
    """The outcome for one example. proof: one of CERTIFIED, or "" if it is not certified.

    witness: one of BROKEN, or "" if nothing broke it. contest: one of contests.CONTESTED, or "" if none broke it.
    proof_reason, witness_reason, contest_reason: why the outcome is not better, or "". error: misclassified without an
    attack.
    """

    index: int
    proof: str
    proof_reason: str
    witness: str
    witness_reason: str
    error: bool
    contest: str = ""
    contest_reason: str = ""

    @property
    def failed(self) -> bool:
        bad = self.proof == "proof fails" or self.witness in ("witness invalid", "no witness")
        return bad or self.contest == "contest invalid"

    @property
    def lost(self) -> bool:
        """Whether it is shown not to be robust."""
        return self.error or self.witness == "witness valid" or self.contest == "contest valid"


class Report(msgspec.Struct, frozen=True):
    """proven_acc: certified with a checked proof. broken_acc: broken by a valid witness, or clean errors.

    proof_bytes: of all proofs. missing: why proofs or witnesses cannot be checked, or "". unused: tensors of the
    weights file that the description of the network leaves out. unchecked_proofs: how many proofs the record counts
    that could not be read.
    """

    run: str
    examples: list[Example]
    certified_acc: float
    proven_acc: float
    broken_acc: float
    proof_bytes: int
    missing: str
    unused: list[str]
    unchecked_proofs: int = 0

    @property
    def unchecked(self) -> str:
        """The evidence of the record that could not be checked; "" if all was."""
        witnesses = self.count("witness not checkable") + self.count("contest not checkable")
        counts = {"proof": self.unchecked_proofs, "witness": witnesses}
        plural = {"proof": "proofs", "witness": "witnesses"}
        return " and ".join(f"{n} {name if n == 1 else plural[name]}" for name, n in counts.items() if n)

    @property
    def failures(self) -> list[Example]:
        return [example for example in self.examples if example.failed]

    def count(self, outcome: str) -> int:
        return sum(outcome in (each.proof, each.witness, each.contest) for each in self.examples)


def recheck(
    folder: Path,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    data_hash: str,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> Report:
    """Check a run against the test images (N,H,W,C) and labels (N,) of its data set, whose hash is `data_hash`.

    CheckError if its files, data or predictions are not those of its record. advance(n): n more examples are checked.
    """
    evidence = Evidence(folder, images, labels, data_hash)
    proven, broken, contested = evidence.certificates(advance), evidence.witnesses(), evidence.contests()
    table, n = evidence.table, len(evidence.x)
    counted = 0 if evidence.record.proofs is None else evidence.record.proofs.count
    examples = []
    for row in range(n):
        (proof, proof_reason), (witness, witness_reason), (contest, contest_reason) = (
            each.get(row, ("", "")) for each in (proven, broken, contested)
        )
        examples.append(
            Example(
                index=int(table["index"][row]), proof=proof, proof_reason=proof_reason, witness=witness,
                witness_reason=witness_reason, error=not table["clean"][row], contest=contest,
                contest_reason=contest_reason,
            )
        )  # fmt: skip
    left = next((each.contest_reason for each in examples if each.contest == "contest not checkable"), "")
    return Report(
        run=str(folder), examples=examples, certified_acc=float(certified(table).mean()),
        proven_acc=sum(example.proof == "proven" for example in examples) / n,
        broken_acc=sum(example.lost for example in examples) / n,
        proof_bytes=sum(map(len, evidence.proofs.values())), missing=evidence.missing or left,
        unused=[] if evidence.network is None else evidence.network.unused,
        unchecked_proofs=max(0, counted - len(evidence.proofs)),
    )  # fmt: skip


class Evidence:
    """A run and its data set, read and checked for consistency."""

    def __init__(
        self, folder: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], data_hash: str
    ) -> None:
        self.folder, self.record = folder, read_run(folder)
        self.table = read_arrays(self._path("examples"))
        rows = self.table["index"]
        for claimed in (self.record.provenance.get("data_hash"), self.record.config.get("data_hash")):
            if claimed != data_hash:
                raise CheckError(f"{self.record.dataset} has the hash {data_hash[:12]}, the record {str(claimed)[:12]}")
        if rows.min() < 0 or rows.max() >= len(labels) or not np.array_equal(labels[rows], self.table["label"]):
            raise CheckError(f"the labels in the run's table are not those of {self.record.dataset}")
        # float32 first: these are the images that were evaluated
        x = images[rows].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        self.x: Vector = x.astype(np.float64)
        self.network, self.missing = self._network()
        self.missing = self.missing or absent_files(self.record, ("witnesses", "proofs"))
        self.proofs: dict[int, bytes] = {}
        if self.network is not None:
            self._check_predictions(self.network)
        if self.network is not None and self._is_here("proofs"):
            try:
                self.proofs = proofs_from(read_arrays(self._path("proofs")))
            except UserError as error:
                raise CheckError(f"{self.folder / PROOFS}: {error}") from error

    def certificates(self, advance: Callable[[int], None]) -> dict[int, tuple[str, str]]:
        """Table row -> (outcome, one of CERTIFIED; reason) for each certified example."""
        return {row: self._certificate(row, advance) for row in np.flatnonzero(certified(self.table)).tolist()}

    def witnesses(self) -> dict[int, tuple[str, str]]:
        """Table row -> (outcome, one of BROKEN; reason) for each broken example."""
        threats = self._threats()
        wanted = {
            (int(row), threats[source])
            for source, column in broken_by(self.table).items()
            for row in np.flatnonzero(column)
        }
        outcomes = {row: ("no witness", "nothing shows that it is broken") for row, _ in wanted}
        if self.network is None or not self._is_here("witnesses"):
            return dict.fromkeys(outcomes, ("witness not checkable", self.missing))
        arrays = read_arrays(self._path("witnesses"))
        row_of = {index: row for row, index in enumerate(self.table["index"].tolist())}
        found = [
            (row_of.get(index, -1), point, threats.get(source))
            for index, point, source in zip(
                arrays["index"].tolist(), arrays["x_adv"].astype(np.float64), arrays["attack"].tolist(), strict=True
            )
        ]
        for row, point, threat in found:
            if threat is None or (row, threat) not in wanted:
                raise CheckError(f"{self.folder / WITNESSES} has a witness that no attack of the record found")
            problem = self._problem(row, point, threat, self.network)
            if problem or outcomes[row][0] != "witness invalid":
                outcomes[row] = ("witness invalid", problem) if problem else ("witness valid", "")
            wanted.discard((row, threat))
        return outcomes | {row: ("no witness", f"none within {each.norm} {each.eps:g}") for row, each in wanted}

    def contests(self) -> dict[int, tuple[str, str]]:
        """Table row -> (outcome, one of contests.CONTESTED; reason) for each example that a contest broke."""
        network, own = self.network, self.record.threat
        problem = None if network is None else lambda row, point: self._problem(row, point, own, network)
        return broken_in_contests(self.folder, self.table["index"], problem, self.missing)

    def _is_here(self, name: str) -> bool:
        file = self.record.artifacts.get(name)
        return file is not None and file.path is not None

    def _path(self, name: str) -> Path:
        file = self.record.artifacts.get(name)
        if file is None or file.path is None:
            raise CheckError(f"{self.folder}: the record has no {name}")
        return self.folder / Path(file.path).name

    def _network(self) -> tuple[Network | None, str]:
        """The network that the run describes; or None, and why there is none."""
        if "network" not in self.record.artifacts:
            known = self.record.proofs
            return None, (known and known.missing) or NOT_DESCRIBED
        if absent_files(self.record, NEEDED):
            return None, absent_files(self.record, (*NEEDED, "witnesses", "proofs"))
        try:
            network = Network(read_description(self._path("network")), load_file(self._path("weights")))
        except UserError as error:
            raise CheckError(f"{self.folder / NETWORK}: {error}") from error
        if tuple(network.shape) != self.x.shape[1:]:
            raise CheckError(f"{self.folder / NETWORK} is of images {network.shape}, not {list(self.x.shape[1:])}")
        return network, ""

    def _check_predictions(self, network: Network) -> None:
        """CheckError if the network does not predict what the table says, up to rounding."""
        for start in range(0, len(self.x), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            logits, predicted = network.logits(self.x[rows]), self.table["prediction"][rows]
            if not np.all((predicted >= 0) & (predicted < network.classes)):
                raise CheckError(f"the table predicts classes that {self.folder / NETWORK} does not have")
            given = logits[np.arange(len(logits)), predicted]
            wrong = ~(given >= logits.max(axis=1) - ROUNDING * np.abs(logits).max(axis=1))
            if wrong.any():
                example = int(self.table["index"][rows][wrong][0])
                raise CheckError(f"{self.folder / NETWORK} predicts another class of example {example} than the table")

    def _certificate(self, row: int, advance: Callable[[int], None]) -> tuple[str, str]:
        proof = self.proofs.get(int(self.table["index"][row]))
        if self.network is None or proof is None:
            by = [source for source, column in certificates(self.table).items() if column[row]]
            by = [str(self.table["decided_by"][row]) if source == BRACKET else source for source in by]
            solver = next((spec for spec in by if split_spec(spec).name in SOLVERS), None)
            return ("no proof", self.missing) if solver is None else ("trusted solver", f"certified by {solver}")
        try:
            check_proof(self.network, proof, self.x[row], int(self.table["label"][row]), self.record.threat)
        except UserError as error:
            return "proof fails", str(error)
        finally:
            advance(1)
        return "proven", ""

    def _threats(self) -> dict[str, Threat]:
        """The threat model of each source of witnesses."""
        own = self.record.threat
        attacks = attack_specs(self.table)
        return {source: threat_of(source, own) if source in attacks else own for source in broken_by(self.table)}

    def _problem(self, row: int, point: Vector, threat: Threat, network: Network) -> str:
        """Say why a point is not an adversarial example of an image; "" if it is one."""
        region = Region.around(self.x[row].ravel(), threat)
        if point.shape != self.x[row].shape or not region.contains(point.ravel()):
            return f"the witness is not within {threat.norm} {threat.eps:g}, or has pixels outside [0, 1]"
        (logits,) = network.logits(point[None])
        label = int(self.table["label"][row])
        others = np.delete(logits, label).max()
        if not logits[label] <= others + ROUNDING * np.abs(logits).max():
            return "the witness is classified correctly"
        return ""
