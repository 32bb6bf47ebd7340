"""The schema of a run's record. Imports no torch.

Every accuracy is computed from the per-example table (bench/core/example_table.py) and checked against it
(record_checks.py); record_files.py reads and writes records.
"""

from typing import Any

import msgspec

from bench.core.example_table import Accuracy, Robustness, Threat

SCHEMA = 2

# Verdicts on an evaluation, the best first, and how tables and pages show them.
VERDICTS = {
    "no-warnings": "no warning signs",
    "submitted-code": "code of the submitter runs",
    "not-attacked": "not attacked",
    "unchecked": "not checked",
    "suspect": "suspect",
    "unreliable": "unreliable",
}


class StageResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage of a staged attack: how many examples it attacked and broke, and its cost."""

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
    stages: dict[str, StageResult] = {}  # by name, of a staged attack


class CertifierResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The results of one certifier over all examples, and its wall seconds.

    mean_radius: over all examples, 0 for those with nothing proven. tolerance: the largest rounding error that was
    subtracted from a margin. broken: the examples with a counterexample; None if the certifier does not search for any.
    """

    certified_acc: float
    ci95: tuple[float, float]
    mean_radius: float
    seconds: float
    kind: str = "deterministic"  # or "probabilistic": true with high probability, for a classifier of its own
    tolerance: float = 0.0
    broken: int | None = None
    warnings: list[str] = []


class BracketStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The examples that one stage of a bracket decided, and the cost of the stage.

    The stage `clean`, and those that are specs of the run's --attacks or --certifiers, hold what was known before the
    bracket; their cost is not counted here. tried: the number of examples; in earlier records, whose budget is a time,
    an example counts once for each round. nodes: sub-problems of a search. proofs: how many of the certificates carry
    a proof that was checked.
    """

    tried: int
    certified: int
    broken: int
    forwards: int
    backwards: int
    seconds: float
    nodes: int | None = None
    proofs: int | None = None


class Bracket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The interval [certified_acc, robust_acc], which contains the true robust accuracy.

    open: the number of examples that are neither certified nor broken. seconds: of all stages. budget: the most sub-
    problems of each certifier that searches, for one example. time_limit: the seconds after which no batch started;
    None if there was no limit. truncated: the time limit ended the stages before they had tried the open examples, so
    another machine may decide more or fewer of them. skipped: the stages that are not possible, and why.

    In earlier records the budget is a time limit, budget_seconds, and the earliest do not say whether they are
    truncated.
    """

    certified_acc: float
    certified_ci95: tuple[float, float]
    robust_acc: float
    robust_ci95: tuple[float, float]
    open: int
    seconds: float
    stages: dict[str, BracketStage]
    skipped: dict[str, str]
    warnings: list[str] = []
    budget: int | None = None
    time_limit: float | None = None
    truncated: bool | None = None
    budget_seconds: float | None = None

    @property
    def effective_time_limit(self) -> float | None:
        """The seconds after which no batch started; None if no clock decided anything."""
        return self.time_limit if self.budget_seconds is None else self.budget_seconds

    @property
    def out_of_time(self) -> bool:
        return self.effective_time_limit is not None and self.seconds >= self.effective_time_limit

    @property
    def cut_by_time(self) -> bool:
        """`truncated`; for the earliest records, whether examples were open when the time limit was reached."""
        return self.open > 0 and self.out_of_time if self.truncated is None else self.truncated


class Computation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the passes of a training were computed, which changes its numbers by rounding only.

    precision: of products and convolutions; weights are in float32. tf32: which float32 operations were in TF32.
    """

    device: str  # "cpu" | "cuda"
    processes: int
    precision: str  # "float32" | "bfloat16"
    channels_last: bool
    compiled: bool
    tf32: list[str]  # of "convolutions" and "products"


class CorruptionResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy under one corruption: the mean over its five severities, and each of them.

    file: SHA-256 of the file of corrupted images (CIFAR-10-C); None if they were made here.
    """

    acc: float
    ci95: tuple[float, float]
    by_severity: list[float]
    seconds: float
    file: str | None = None


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cost of a training (passes of one example, wall seconds) and its warnings."""

    epochs: int
    seconds: float
    forwards: int
    backwards: int
    warnings: list[str] = []
    computation: Computation | None = None  # None in earlier records


class SanityCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sanity check, which warns if `value` is above `threshold`; both are None if nothing was measured."""

    name: str
    outcome: str  # "passed" | "suspect" | "unreliable" | "skipped"
    value: float | None
    threshold: float | None
    evidence: str  # one line: what was measured, on how many examples, and what was tried to resolve it


class Sanity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The verdict on an evaluation, its reasons (one line each), and all checks."""

    verdict: str  # a key of VERDICTS; "clean" in earlier records reads as "no-warnings"
    reasons: list[str]
    checks: list[SanityCheck] = []

    def __post_init__(self) -> None:
        if self.verdict == "clean":
            msgspec.structs.force_setattr(self, "verdict", "no-warnings")


class ProofSummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many certified examples have a proof that `bench recheck` can check; missing: why none has, or ""."""

    count: int
    missing: str = ""


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The size of a network.

    weights: the number of weights of linear and convolutional layers. kept: how many are not 0. bits: their size, 1 bit
    for each weight in a layer of at most two values and 32 otherwise. bytes: the size of the packed network (`bench
    pack`). flops: the operations of the prediction for one image, by Table 5.1 of the thesis.
    """

    weights: int
    kept: int
    bits: int
    bytes: int
    flops: int

    @property
    def is_compressed(self) -> bool:
        return self.kept < self.weights or self.bits < 32 * self.kept


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file of the run folder (path) or published elsewhere (url)."""

    sha256: str
    bytes: int
    path: str | None = None
    url: str | None = None


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run: one defense (or checkpoint), one seed.

    suite: where the defaults came from. `attacks` and `n_examples` say whether all of its attacks ran on all of its
    examples.
    """

    schema: int
    suite: str | None
    dataset: str
    model: str
    parameters: int | None  # trainable and fixed; None in records from before they were counted
    size: Size | None = None  # None in earlier records, and for networks that are not in float32
    defense: str
    seed: int
    threat: Threat
    config: dict[str, Any]
    config_hash: str
    n_examples: int
    clean: Accuracy
    attacks: dict[str, AttackResult]
    worst: Robustness | None  # over everything that attacked under `threat`, the bracket included; None if nothing did
    worst_by: list[str] | None = None  # what set `worst`; None in earlier records, whose `worst` is over attacks only
    union: Robustness | None = None  # over all attacks, if some ran under another threat model than `threat`
    certifiers: dict[str, CertifierResult]
    bracket: Bracket | None = None
    corruptions: dict[str, CorruptionResult] = {}
    corrupted: Accuracy | None = None  # the mean over `corruptions`; None without any
    proofs: ProofSummary | None = None  # None without a certifier, and in records from before there were proofs
    audited: int = 0  # certified examples that were attacked, as a check of the certifiers
    training: Training | None  # None if the weights were trained elsewhere
    sanity: Sanity
    artifacts: dict[str, Artifact]
    provenance: dict[str, Any]

    @property
    def attacked(self) -> Robustness | None:
        """The accuracy under everything that attacked under `threat`, also in earlier records: see worst_by."""
        ends = [] if self.worst is None else [self.worst]
        if self.bracket is not None:
            ends.append(Robustness(self.bracket.robust_acc, self.bracket.robust_ci95))
        return min(ends, key=lambda end: end.robust_acc, default=None)

    @property
    def networks(self) -> int:
        """The number of networks that classify an image: several in an ensemble of the ends of periods (`pas`)."""
        training = self.config.get("training", {})
        return len(training.get("periods", ())) + 1 if training.get("ensemble", False) else 1

    @property
    def certifies_model(self) -> bool:
        """Whether a bracket or a certifier of the model itself ran; smoothing certifies a classifier of its own."""
        return self.bracket is not None or any(each.kind == "deterministic" for each in self.certifiers.values())
