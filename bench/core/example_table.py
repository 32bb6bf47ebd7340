"""The per-example table of a run: its columns, their consistency, and the accuracies computed from them.

A dict of numpy arrays with one row per evaluated example:

- every run: `index`, `label`, `prediction` int64, `clean` bool (correct without an attack);
- an attack: `robust/SPEC` bool; `passes/SPEC` int64, the forward and backward passes of the example until it was
  broken, or all of them; `distance/SPEC` float32 (minimum-norm attacks only);
- a certifier: `certified/SPEC` bool; `radius/SPEC` float32; `broken/SPEC` bool (if it also finds counterexamples);
  `prediction/SPEC` int64 (if it certifies another classifier than the model: smoothing);
- a corruption: `corrupted/NAME:severity=S` bool, whether the corrupted image is classified correctly, S 1 to 5;
- a bracket: `status` ("certified", "broken" or "open") and `decided_by` (the stage; "clean" for a clean error, "" if
  the example is open).

Imports no torch.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core import clopper_pearson
from bench.core.errors import UserError
from bench.core.spec_text import split_spec

BRACKET = "bracket"  # the source of the witnesses that the stages of the bracket found
STATUSES = ("certified", "broken", "open")
CORRUPTED = "corrupted/"
SEVERITIES = (1, 2, 3, 4, 5)  # of a corruption
Table = dict[str, npt.NDArray[Any]]
Flags = npt.NDArray[np.bool_]


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fraction of the examples with its 95 % Clopper-Pearson interval."""

    acc: float
    ci95: tuple[float, float]


class Robustness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy under one attack, or under several; clean errors count as not robust."""

    robust_acc: float
    ci95: tuple[float, float]


class Threat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """box: whether points are kept in [0, 1], as those of every board are."""

    norm: str
    eps: float
    box: bool = True


def accuracy(flags: Flags) -> Accuracy:
    """The fraction of True with its 95 % Clopper-Pearson interval."""
    n, k = len(flags), int(flags.sum())
    low, high = clopper_pearson.interval(k, n)
    return Accuracy(k / n, (float(low), float(high)))


def robustness(robust: Flags) -> Robustness:
    share = accuracy(robust)
    return Robustness(share.acc, share.ci95)


def attack_specs(table: Table) -> list[str]:
    return [key.removeprefix("robust/") for key in table if key.startswith("robust/")]


def certifier_specs(table: Table) -> list[str]:
    return [key.removeprefix("certified/") for key in table if key.startswith("certified/")]


def threat_of(spec: str, threat: Threat) -> Threat:
    """The threat model of an attack: `threat`, with the norm and the eps that its canonical spec sets."""
    options = split_spec(spec).options
    return Threat(options.get("norm", threat.norm), float(options.get("eps", threat.eps)), threat.box)


def own_specs(table: Table) -> list[str]:
    """The attacks under the record's own threat model."""
    return [spec for spec in attack_specs(table) if not {"norm", "eps"} & split_spec(spec).options.keys()]


def worst_case(table: Table, specs: Sequence[str] | None = None) -> Flags:
    """Which examples are correct under each of `specs` (default: every attack under the record's own threat model)."""
    columns = [table[f"robust/{spec}"] for spec in (own_specs(table) if specs is None else specs)]
    robust: Flags = np.logical_and.reduce([table["clean"], *columns])
    return robust


def broken_by(table: Table) -> dict[str, Flags]:
    """Which correct examples each attack, each certifier that finds counterexamples, and the bracket broke.

    The keys are the sources that witnesses name. All are under the record's own threat model, except attacks with
    another norm or eps.
    """
    broken = {spec: table["clean"] & ~table[f"robust/{spec}"] for spec in attack_specs(table)}
    broken |= {spec: table[f"broken/{spec}"] for spec in certifier_specs(table) if f"broken/{spec}" in table}
    if "status" in table:
        broken[BRACKET] = table["clean"] & (table["status"] == "broken")
    return broken


def survivors(table: Table) -> Flags:
    """Which examples are correct and not broken by anything under the record's own threat model."""
    other_threats = set(attack_specs(table)) - set(own_specs(table))
    broken = [column for source, column in broken_by(table).items() if source not in other_threats]
    robust: Flags = ~np.logical_or.reduce([~table["clean"], *broken])
    return robust


def attacked(table: Table) -> bool:
    """Whether anything that could break an example ran under the record's own threat model."""
    finds_counterexamples = any(f"broken/{spec}" in table for spec in certifier_specs(table))
    return bool(own_specs(table)) or finds_counterexamples or "status" in table


def worst(table: Table) -> Robustness | None:
    """Accuracy under everything that attacked under the record's own threat model; None if nothing did."""
    return robustness(survivors(table)) if attacked(table) else None


def worst_by(table: Table) -> list[str]:
    """The sources of broken_by that determine the worst accuracy: the strongest, and those that break further examples.

    A bracket counts only with the examples that no other source broke.
    """
    broken, other_threats = broken_by(table), set(attack_specs(table)) - set(own_specs(table))
    own = {source: column for source, column in broken.items() if source not in other_threats}
    if BRACKET in own:
        own[BRACKET] = np.logical_and.reduce([own[BRACKET], *(~own[source] for source in own if source != BRACKET)])
    left, sources = table["clean"] & ~survivors(table), []
    for source in sorted(own, key=lambda source: -int(own[source].sum())):
        if (own[source] & left).any():
            sources.append(source)
            left &= ~own[source]
    return sources


def union(table: Table) -> Robustness | None:
    """Accuracy under all attacks; None unless some of them are under another threat model than the record's."""
    specs = attack_specs(table)
    if len(own_specs(table)) == len(specs):
        return None
    return robustness(survivors(table) & worst_case(table, specs))


def certificates(table: Table) -> dict[str, Flags]:
    """The examples that each certifier of the model itself, and the bracket, certified."""
    specs = [spec for spec in certifier_specs(table) if f"prediction/{spec}" not in table]
    columns: dict[str, Flags] = {spec: table[f"certified/{spec}"] for spec in specs}
    if "status" in table:
        columns[BRACKET] = table["status"] == "certified"
    return columns


def certified(table: Table) -> Flags:
    """Which examples hold a certificate of the model itself, from any source."""
    either: Flags = np.logical_or.reduce([np.zeros_like(table["clean"]), *certificates(table).values()])
    return either


def corrupted(table: Table) -> dict[str, Flags]:
    """Corruption -> the examples (5,N) that are correct, one row per severity. UserError if a severity is missing."""
    names = dict.fromkeys(key.removeprefix(CORRUPTED).partition(":")[0] for key in table if key.startswith(CORRUPTED))
    columns = {name: [f"{CORRUPTED}{name}:severity={severity}" for severity in SEVERITIES] for name in names}
    _check_present(table, [key for keys in columns.values() for key in keys])
    return {name: np.stack([table[key] for key in keys]) for name, keys in columns.items()}


def mean_accuracy(flags: Flags) -> Accuracy:
    """The mean of flags (...,N) over everything, and an interval over the N examples.

    It is the Clopper-Pearson interval of N flags: the mean over an example's flags has at most the variance of one
    flag.
    """
    mean, n = float(flags.mean()), flags.shape[-1]
    low, high = clopper_pearson.interval(mean * n, n)
    return Accuracy(mean, (float(low), float(high)))


def mean_radius(table: Table, spec: str) -> float:
    return float(table[f"radius/{spec}"].astype(np.float64).mean())


REQUIRED = ("index", "label", "prediction", "clean")
TYPES = {
    "index": np.int64, "label": np.int64, "prediction": np.int64, "clean": np.bool_, "status": np.str_,
    "decided_by": np.str_,
}  # fmt: skip
PREFIXES = {
    "robust/": np.bool_,
    "passes/": np.int64,
    "distance/": np.float32,
    "certified/": np.bool_,
    "radius/": np.float32,
    "broken/": np.bool_,
    "prediction/": np.int64,
    CORRUPTED: np.bool_,
}


def check_columns(table: Table) -> None:
    """UserError if a column is missing, or has the wrong type or length."""
    _check_present(table, REQUIRED)
    n = table["index"].size
    for key, column in table.items():
        wanted = TYPES.get(key) or next((t for prefix, t in PREFIXES.items() if key.startswith(prefix)), None)
        if wanted is None:
            continue
        fits = column.dtype.kind == "U" if wanted is np.str_ else column.dtype == wanted
        if not fits or column.shape != (n,):
            raise UserError(f"column '{key}' is {column.dtype} {column.shape}; it must be {wanted.__name__} ({n},)")
    _check_present(table, [f"radius/{spec}" for spec in certifier_specs(table)])
    if "status" in table or "decided_by" in table:
        _check_present(table, ["status", "decided_by"])
    if n == 0 or len(np.unique(table["index"])) != n:
        raise UserError("the table must have at least one row, and no example twice")


def _check_present(table: Table, columns: Sequence[str]) -> None:
    for key in columns:
        if key not in table:
            raise UserError(f"the table has no column '{key}'")


def check_table(table: Table) -> None:
    """UserError if a column is missing, has the wrong type or length, or contradicts another column."""
    check_columns(table)
    if not np.array_equal(table["clean"], table["label"] == table["prediction"]):
        raise UserError("column 'clean' does not follow from 'label' and 'prediction'")
    for spec in attack_specs(table):
        if np.any(table[f"robust/{spec}"] & ~table["clean"]):
            raise UserError(f"column 'robust/{spec}' counts an example as robust that is misclassified without attack")
    for spec in certifier_specs(table):
        _check_certifier(table, spec)
    if "status" in table:
        _check_statuses(table)
    contradictory = certified(table) & ~survivors(table)
    if contradictory.any():
        raise UserError(f"example {table['index'][contradictory][0]} is both certified and broken")


def _check_certifier(table: Table, spec: str) -> None:
    proven, radius, broken = table[f"certified/{spec}"], table[f"radius/{spec}"], table.get(f"broken/{spec}")
    correct = table["label"] == table.get(f"prediction/{spec}", table["prediction"])
    if np.any(proven & ~correct):
        raise UserError(f"column 'certified/{spec}' counts a misclassified example as certified")
    if not (np.isfinite(radius).all() and np.all(radius >= 0) and np.all(radius[~correct] == 0)):
        raise UserError(f"column 'radius/{spec}' must be finite, not negative, and 0 for misclassified examples")
    if broken is not None and np.any(broken & (proven | ~table["clean"])):
        raise UserError(f"column 'broken/{spec}' counts an example that is certified, or a clean error")


def _check_statuses(table: Table) -> None:
    status, decided_by, clean = table["status"], table["decided_by"], table["clean"]
    if not np.isin(status, STATUSES).all():
        raise UserError(f"column 'status' must hold {', '.join(STATUSES)}")
    if not np.array_equal(status == "open", decided_by == ""):
        raise UserError("column 'decided_by' must name a stage if and only if 'status' is not open")
    if not np.array_equal(decided_by == "clean", ~clean) or np.any(status[~clean] != "broken"):
        raise UserError("clean errors, and only they, must be broken and decided by 'clean'")
