"""A board: what every rendering (page, markdown, CSV, LaTeX, JSON) shows of the entries of one suite."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["recipe", "weights", "reported"]
Status = Literal["re-checkable", "not re-checkable", "reported, not verified"]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """An accuracy: the mean over seeds, its 95 % Clopper-Pearson interval, and the standard deviation over seeds."""

    acc: float
    low: float
    high: float
    spread: float | None = None  # None for one seed


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an entry's own table: an attack or a certifier, over the seeds that ran it."""

    spec: str
    accuracy: Estimate
    forwards: float | None = None  # passes of single examples, a seed
    backwards: float | None = None
    seconds: float


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Robust accuracy against eps: under one attack at several eps, or by a minimum-norm attack's distances."""

    norm: str
    label: str
    eps: tuple[float, ...]
    acc: tuple[float, ...]


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a seed costs on average. passes: of single examples through the model, forwards and backwards together."""

    training_seconds: float | None = None
    training_passes: float | None = None
    evaluation_passes: float
    hardware: str  # as `AMD EPYC, 1 thread`, or the GPU's name


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an entry, and where its evidence is."""

    seed: int
    config_hash: str
    n_examples: int
    clean: float
    attacked: float | None
    certified: float | None
    weights: str  # SHA-256
    weights_url: str | None
    provenance: dict[str, str]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One entry. Of a reported one only what its authors reported is there."""

    name: str  # of its folder
    title: str
    kind: Kind
    status: Status
    dataset: str
    norm: str
    eps: float
    threat: str  # as people write it: `Linf 8/255`
    architecture: str  # spec of the model
    parameters: int | None
    extra_data: bool
    clean: Estimate | None
    attacked: Estimate | None  # what survives every attack
    certified: Estimate | None  # what is certified, by whomever
    rank: int | None  # 1 + the number of entries that are significantly better; None where nothing can be claimed
    rank_low: int  # the best and the worst rank that the tests leave open
    rank_high: int
    group: int | None = None  # 1 for the first ranked entry and all below that it is not significantly better than ...
    verdict: str  # the worst of its seeds': "clean", "suspect", "unreliable"; "unchecked" of a reported entry
    reasons: tuple[str, ...] = ()
    cost: Cost | None = None
    attacks: tuple[Measured, ...] = ()
    certifiers: tuple[Measured, ...] = ()
    curves: tuple[Curve, ...] = ()
    seeds: tuple[Seed, ...] = ()
    command: str | None = None  # how to reproduce it
    paper: str | None = None
    url: str | None = None
    licence: str | None = None
    note: str | None = None  # contests that lowered it, what the authors say


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """The entries of one suite, best first; how ranks were claimed is `rule`."""

    suite: str
    summary: str
    rule: str
    rows: tuple[Row, ...]
