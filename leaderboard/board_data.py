"""The data of a board: the entries of one suite, for every output format (page, markdown, CSV, LaTeX, JSON)."""

from typing import Literal

import msgspec

from leaderboard.estimates import INTERVALS as OF_ACCURACIES
from leaderboard.estimates import Estimate

Kind = Literal["recipe", "weights", "reported"]
Trained = Literal["reproduced", "by its authors only", "elsewhere"]
Status = Literal["re-checkable", "partly re-checkable", "not re-checkable", "reported, not verified"]
STATUS_NOTES: dict[Status, str] = {
    "partly re-checkable": (
        "Partly re-checkable: the weights and adversarial examples of some seeds are published. The other seeds can be "
        "retrained: on the machine named in the record, the command gives the weights whose hash the record holds."
    ),
    "not re-checkable": (
        "Not re-checkable: the weights and adversarial examples are not published, so nobody else can check the "
        "numbers."
    ),
}
SeedStatus = Literal["re-checkable", "can be retrained", "not re-checkable"]


INTERVALS = (
    f"{OF_ACCURACIES} Open examples are neither certified nor broken; "
    "`cut` means that a time limit ended before all methods had tried them: another machine may decide more or fewer. "
    "Certificates count if their proof was checked or if they were given again within the work of the checker; those "
    "of a trusted solver are counted separately. `not checked` are those of entries from before certificates were "
    "checked."
)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The accuracy and the cost of one attack or certifier, means over the seeds that ran it."""

    spec: str
    accuracy: Estimate
    forwards: float | None = None  # passes of single examples, for each seed
    backwards: float | None = None
    seconds: float


class Certificates(msgspec.Struct, frozen=True, kw_only=True):
    """The certificates of a seed by how they were checked, means over the seeds.

    proven: with a proof that was checked; again: without a proof, but certified again; solver: by a solver that gives
    no proof; open: not certified again within the checker's work limit; unchecked: in entries from before certificates
    were checked. Only proven, again and (in such entries) unchecked count as certified.
    """

    proven: float
    again: float
    solver: float
    open: float
    unchecked: float

    def as_text(self) -> str:
        """`128 proven, 3 again, 2 trusted solver`, without kinds whose number is 0."""
        kinds = [("proven", self.proven), ("certified again", self.again), ("trusted solver", self.solver)]
        kinds += [("open again", self.open), ("not checked", self.unchecked)]
        return ", ".join(f"{count:.4g} {kind}" for kind, count in kinds if count)


class StageMeans(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one stage of the bracket decided, and its work: means over the seeds, 0 for a seed that it did not run on.

    nodes: sub-problems of a search; proofs: certificates with a proof that was checked. None if no seed has any.
    """

    stage: str
    tried: float
    certified: float
    broken: float
    forwards: float  # passes of single examples
    backwards: float
    seconds: float
    nodes: float | None = None
    proofs: float | None = None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Robust accuracy against eps, for one attack at several eps, or from the distances of a minimum-norm attack."""

    norm: str
    label: str
    eps: tuple[float, ...]
    acc: tuple[float, ...]


class PassesCurve(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy against the passes of one attack per example, means over seeds.

    passes: forward and backward passes of an example through the model.
    """

    label: str  # the attack
    passes: tuple[int, ...]
    acc: tuple[float, ...]


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """The mean cost of a seed. passes: forward and backward passes of single examples through the model.

    training_passes: None if they do not measure the work. computes_bounds: whether that is because the training
    computes bounds, which are not counted as passes.
    """

    training_epochs: float | None = None
    training_seconds: float | None = None
    training_passes: float | None = None
    computes_bounds: bool = False
    evaluation_passes: float
    networks: int = 1  # that classify an image together, each by one forward pass
    hardware: str  # `AMD EPYC, 1 thread`, or the name of the GPU


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an entry, and where its weights are."""

    seed: int
    config_hash: str
    n_examples: int
    clean: float
    attacked: float | None
    certified: float | None
    open: int | None = None  # undecided examples of the bracket; None without a bracket
    truncated: bool = False  # whether a time limit ended before all of its stages had tried them
    weights: str  # SHA-256
    weights_url: str | None
    status: SeedStatus
    provenance: dict[str, str]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One entry. A reported entry has only what its authors reported."""

    name: str  # of its folder
    title: str
    kind: Kind
    status: Status
    dataset: str
    norm: str
    eps: float
    threat: str  # `Linf 8/255`
    architecture: str  # spec of the model
    parameters: int | None
    extra_data: bool
    data: str | None = None  # of a reported entry: additional data, `none`, `synthetic, 50M` or `real`
    clean: Estimate | None
    attacked: Estimate | None  # accuracy under everything that attacked
    attacked_by: tuple[str, ...] = ()  # the attacks that determined it, over all seeds
    certified: Estimate | None  # by any of the certifiers
    certificates: Certificates | None = None  # how they were checked; None if there are none
    trained: Trained | None = None  # by whom; None for reported entries
    rank: int | None  # 1 + the number of entries that are significantly better; None if no rank can be claimed
    rank_low: int | None  # the best and the worst rank that the tests leave open; None if no rank can be claimed
    rank_high: int | None
    open: float | None = None  # examples that the brackets left undecided, mean over seeds; None without a bracket
    truncated: bool = False  # whether a time limit ended before all stages had tried them
    budget: int | None = None  # of the brackets: sub-problems per example; None if it was a time
    decided: tuple[StageMeans, ...] = ()  # decisions of the brackets' stages, in their order
    position: int | None = None  # of a reported entry, its position on the board by accuracy; not a rank
    group: int | None = None  # begins with the first entry that the first of the previous group is better than
    verdict: str  # the worst of its seeds, a key of VERDICTS
    reasons: tuple[str, ...] = ()
    cost: Cost | None = None
    attacks: tuple[Measured, ...] = ()
    certifiers: tuple[Measured, ...] = ()
    curves: tuple[Curve, ...] = ()
    passes_curves: tuple[PassesCurve, ...] = ()
    seeds: tuple[Seed, ...] = ()
    command: str | None = None  # reproduces the entry
    paper: str | None = None
    url: str | None = None  # of the paper
    code: str | None = None  # an address
    licence: str | None = None
    note: str | None = None  # of the authors; and contests that lowered the accuracy


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """The entries of one suite: first those with a rank, then the others; in each part the most robust first.

    rule: how ranks are claimed. left_out: the problems of entries whose files cannot be read.
    """

    suite: str
    summary: str
    rule: str
    rows: tuple[Row, ...]
    left_out: tuple[str, ...] = ()
