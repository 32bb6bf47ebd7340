"""The per-example table of a run: its columns, what they must say of one another, and what follows from them.

A dict of numpy arrays with one row per evaluated example. Of every run `index`, `label`, `prediction` int64, `clean`
bool. Of an attack `robust/SPEC` bool, `passes/SPEC` int64 (passes of the example, both ways, until it fell to the
attack; all of them where it did not), `distance/SPEC` float32 (of a minimum-norm attack). Of a certifier
`certified/SPEC` bool, `radius/SPEC` float32, `broken/SPEC` bool (of one that also finds counterexamples),
`prediction/SPEC` int64 (of one that certifies another classifier than the model: smoothing). Of a bracket `status`
("certified", "broken" or "open") and `decided_by` (the stage; "clean" for a clean error, "" where open).
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core import clopper_pearson
from bench.core.errors import UserError
from bench.core.spec_text import split_spec

BRACKET = "bracket"  # who made the witness of an example that a stage of the bracket broke
STATUSES = ("certified", "broken", "open")
Table = dict[str, npt.NDArray[Any]]
Flags = npt.NDArray[np.bool_]


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share of the examples with its 95 % Clopper-Pearson interval."""

    acc: float
    ci95: tuple[float, float]


class Robustness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy under one attack (or the worst of all), clean errors counted as not robust."""

    robust_acc: float
    ci95: tuple[float, float]


class Threat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    norm: str
    eps: float


def accuracy(hits: Flags) -> Accuracy:
    """The share of True with its 95 % Clopper-Pearson interval."""
    n, k = len(hits), int(hits.sum())
    low, high = clopper_pearson.interval(k, n)
    return Accuracy(k / n, (float(low), float(high)))


def robustness(hits: Flags) -> Robustness:
    found = accuracy(hits)
    return Robustness(found.acc, found.ci95)


def attack_specs(table: Table) -> list[str]:
    return [key.removeprefix("robust/") for key in table if key.startswith("robust/")]


def certifier_specs(table: Table) -> list[str]:
    return [key.removeprefix("certified/") for key in table if key.startswith("certified/")]


def threat_of(spec: str, threat: Threat) -> Threat:
    """The threat model of an attack: the record's, but for what its canonical spec says (`:norm=L2`, `:eps=0.5`)."""
    options = split_spec(spec).options
    return Threat(options.get("norm", threat.norm), float(options.get("eps", threat.eps)))


def own_specs(table: Table) -> list[str]:
    """The attacks under the record's own threat model."""
    nowhere = Threat("", 0.0)
    return [spec for spec in attack_specs(table) if threat_of(spec, nowhere) == nowhere]


def worst_case(table: Table, specs: Sequence[str] | None = None) -> Flags:
    """Which examples are right and survive every attack under the record's own threat model, or each of `specs`."""
    columns = [table[f"robust/{spec}"] for spec in (own_specs(table) if specs is None else specs)]
    robust: Flags = np.logical_and.reduce([table["clean"], *columns])
    return robust


def union(table: Table) -> Robustness | None:
    """Accuracy under all attacks together, where some of them are under another threat model than the record's."""
    specs = attack_specs(table)
    return robustness(worst_case(table, specs)) if len(own_specs(table)) < len(specs) else None


def worst(table: Table) -> Robustness | None:
    """Accuracy under all attacks of the record's own threat model, where there are any."""
    return robustness(worst_case(table)) if own_specs(table) else None


def broken_by(table: Table) -> dict[str, Flags]:
    """Which examples that are right fell to each attack, to each certifier that finds counterexamples, to the bracket.

    The key is what their witnesses name as their maker; all but some attacks are under the record's threat model.
    """
    fell = {spec: table["clean"] & ~table[f"robust/{spec}"] for spec in attack_specs(table)}
    fell |= {spec: table[f"broken/{spec}"] for spec in certifier_specs(table) if f"broken/{spec}" in table}
    if "status" in table:
        fell[BRACKET] = table["clean"] & (table["status"] == "broken")
    return fell


def survivors(table: Table) -> Flags:
    """Which examples are right and fell to nothing under the record's own threat model."""
    attacks_elsewhere = set(attack_specs(table)) - set(own_specs(table))
    fell = [column for maker, column in broken_by(table).items() if maker not in attacks_elsewhere]
    stand: Flags = table["clean"] & ~np.logical_or.reduce([~table["clean"], *fell])
    return stand


def certificates(table: Table) -> dict[str, Flags]:
    """Which examples each certifier of the model itself certified, and the bracket."""
    own = [spec for spec in certifier_specs(table) if f"prediction/{spec}" not in table]
    found: dict[str, Flags] = {spec: table[f"certified/{spec}"] for spec in own}
    if "status" in table:
        found[BRACKET] = table["status"] == "certified"
    return found


def certified(table: Table) -> Flags:
    """Which examples hold a certificate of the model itself, whoever gave it."""
    found: Flags = np.logical_or.reduce([np.zeros_like(table["clean"]), *certificates(table).values()])
    return found


TYPES = {"index": np.int64, "label": np.int64, "prediction": np.int64, "clean": np.bool_}
PREFIXES = {
    "robust/": np.bool_,
    "passes/": np.int64,
    "distance/": np.float32,
    "certified/": np.bool_,
    "radius/": np.float32,
    "broken/": np.bool_,
    "prediction/": np.int64,
}


def mean_radius(table: Table, spec: str) -> float:
    return float(table[f"radius/{spec}"].astype(np.float64).mean())


def check_table(table: Table) -> None:
    """UserError where the table is not one: columns, types, lengths, and columns that contradict one another."""
    for key in TYPES:
        if key not in table:
            raise UserError(f"the table has no column '{key}'")
    n = table["index"].size
    for key, column in table.items():
        wanted = TYPES.get(key) or next((t for prefix, t in PREFIXES.items() if key.startswith(prefix)), None)
        if wanted is not None and (column.dtype != wanted or column.shape != (n,)):
            raise UserError(f"column '{key}' is {column.dtype} {column.shape}; it must be {wanted.__name__} ({n},)")
    if n == 0 or len(set(table["index"].tolist())) != n:
        raise UserError("the table must have at least one row, and no example twice")
    if not np.array_equal(table["clean"], table["label"] == table["prediction"]):
        raise UserError("column 'clean' does not follow from 'label' and 'prediction'")
    for spec in attack_specs(table):
        if np.any(table[f"robust/{spec}"] & ~table["clean"]):
            raise UserError(f"column 'robust/{spec}' counts an example as robust that is wrong without any attack")
    for spec in certifier_specs(table):
        _check_certifier(table, spec)
    if "status" in table or "decided_by" in table:
        _check_statuses(table)
    both = certified(table) & ~survivors(table)
    if both.any():
        raise UserError(f"example {table['index'][both][0]} is certified, and broken all the same")


def _check_certifier(table: Table, spec: str) -> None:
    if f"radius/{spec}" not in table:
        raise UserError(f"the table has no column 'radius/{spec}'")
    proven, radius = table[f"certified/{spec}"], table[f"radius/{spec}"]
    right = table["label"] == table.get(f"prediction/{spec}", table["prediction"])
    if np.any(proven & ~right):
        raise UserError(f"column 'certified/{spec}' counts an example as certified that is wrong without any attack")
    if not (np.isfinite(radius).all() and np.all(radius >= 0) and np.all(radius[~right] == 0)):
        raise UserError(f"column 'radius/{spec}' must be finite, not negative, and 0 where the prediction is wrong")
    fell = table.get(f"broken/{spec}")
    if fell is not None and np.any(fell & (proven | ~table["clean"])):
        raise UserError(f"column 'broken/{spec}' counts an example that is certified, or wrong already")


def _check_statuses(table: Table) -> None:
    n = table["index"].size
    for key in ("status", "decided_by"):
        if key not in table or table[key].dtype.kind != "U" or table[key].shape != (n,):
            raise UserError(f"column '{key}' is missing, or not of {n} words; a bracket has 'status' and 'decided_by'")
    status, decided_by, clean = table["status"], table["decided_by"], table["clean"]
    if not np.isin(status, STATUSES).all():
        raise UserError(f"column 'status' must hold {', '.join(STATUSES)}")
    if not np.array_equal(status == "open", decided_by == ""):
        raise UserError("column 'decided_by' must name a stage exactly where 'status' is not open")
    if not np.array_equal(decided_by == "clean", ~clean) or np.any(status[~clean] != "broken"):
        raise UserError("a clean error must be broken, decided by 'clean', and nothing else may be")
