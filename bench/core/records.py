"""The record of a run: its schema. Imports no torch.

Every accuracy of a record is computed from its per-example table (bench/core/example_table.py); record_checks.py checks
that it is, record_files.py reads and writes records.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bench.core.example_table import Accuracy, Robustness, Threat

SCHEMA = 2

# Verdicts on an evaluation, and how tables and pages show them.
VERDICTS = {
    "no-warnings": "no warning signs",
    "suspect": "suspect",
    "unreliable": "unreliable",
    "not-attacked": "not attacked",
    "unchecked": "not checked",
}


class StageResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one stage of a staged attack did: how many examples it attacked, how many it broke, at what cost."""

    attacked: int
    broken: int
    forwards: int
    backwards: int
    seconds: float


class AttackResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy under one attack, and its cost: passes of one example through the model, and wall seconds."""

    robust_acc: float
    ci95: tuple[float, float]
    forwards: int
    backwards: int
    seconds: float
    warnings: list[str] = []
    stages: dict[str, StageResult] = {}  # by name, where the attack has several


class CertifierResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one certifier proved of all examples (a radius of 0 where nothing), and its wall seconds.

    tolerance: the largest that rounding was allowed to take from a margin. broken: how many examples it found a
    counterexample of; None where it looks for none.
    """

    certified_acc: float
    ci95: tuple[float, float]
    mean_radius: float
    seconds: float
    kind: str = "deterministic"  # or "probabilistic": of a classifier of its own, wrong with a small probability
    tolerance: float = 0.0
    broken: int | None = None
    warnings: list[str] = []


class BracketStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one stage of a bracket did with the examples that were still open, and its cost.

    `clean`, and a stage that is a spec of the run's own --attacks or --certifiers, bring what was known before the
    bracket; their cost is not part of it.
    """

    tried: int
    certified: int
    broken: int
    forwards: int
    backwards: int
    seconds: float


class Bracket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The true robust accuracy lies in [certified_acc, robust_acc]: what is certified, and what nothing has broken.

    open: the examples between the two. seconds: of the stages, which stop once they have spent budget_seconds. skipped:
    stages that cannot be, and why.
    """

    certified_acc: float
    certified_ci95: tuple[float, float]
    robust_acc: float
    robust_ci95: tuple[float, float]
    open: int
    budget_seconds: float
    seconds: float
    stages: dict[str, BracketStage]
    skipped: dict[str, str]
    warnings: list[str] = []


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cost of training: passes of one example, wall seconds; and what the loop warned of."""

    epochs: int
    seconds: float
    forwards: int
    backwards: int
    warnings: list[str] = []


class SanityCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sanity check: `value` alarms where it is above `threshold`; both are None where nothing was measured."""

    name: str
    outcome: str  # "passed" | "suspect" | "unreliable" | "skipped"
    value: float | None
    threshold: float | None
    evidence: str  # one line: what was measured, on how many examples, and what was tried to resolve it


class Sanity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine's verdict on an evaluation, its reasons (a line each), and every check that was made."""

    verdict: str  # a key of VERDICTS; "clean" in earlier records reads as "no-warnings"
    reasons: list[str]
    checks: list[SanityCheck] = []

    def __post_init__(self) -> None:
        if self.verdict == "clean":
            msgspec.structs.force_setattr(self, "verdict", "no-warnings")


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file of the run folder (path) or published elsewhere (url)."""

    sha256: str
    bytes: int
    path: str | None = None
    url: str | None = None


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run: one defense (or checkpoint), one seed.

    suite: whose data, threat model and settings the run began with. Whether it also ran all of the suite's attacks on
    all of its examples is in `attacks` and `n_examples`, for a leaderboard to ask.
    """

    schema: int
    suite: str | None
    dataset: str
    model: str
    parameters: int | None  # that train and that do not; None where the record is older than this count
    defense: str
    seed: int
    threat: Threat
    config: dict[str, Any]
    config_hash: str
    n_examples: int
    clean: Accuracy
    attacks: dict[str, AttackResult]
    worst: Robustness | None  # over the attacks under `threat`; None where none ran
    union: Robustness | None = None  # over all attacks, where some ran under another threat model than `threat`
    certifiers: dict[str, CertifierResult]
    bracket: Bracket | None = None  # where one was asked for
    audited: int = 0  # certified examples that were attacked all the same
    training: Training | None  # None where the weights were trained elsewhere
    sanity: Sanity
    artifacts: dict[str, Artifact]
    provenance: dict[str, Any]
