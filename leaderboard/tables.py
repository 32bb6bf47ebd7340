"""Records as tables: one run in detail, or several side by side."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from tabulate import tabulate

from bench.core.records import Record

Format = Literal["markdown", "csv", "latex", "json"]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def interval(ci95: tuple[float, float]) -> str:
    return f"[{percent(ci95[0])}, {percent(ci95[1])}]"


def threat_name(record: Record) -> str:
    """The threat model as people write it: `Linf 8/255`, `L2 0.5`."""
    grey = record.threat.eps * 255
    whole = round(grey)
    as_grey = record.threat.norm == "Linf" and 1 <= whole <= 32 and abs(grey - whole) < 1e-6
    return f"{record.threat.norm} {f'{whole}/255' if as_grey else f'{record.threat.eps:g}'}"


def run_table(record: Record) -> str:
    """One run in markdown: each accuracy with its 95 % interval and its cost, and the cost of training."""
    rows: list[list[Any]] = [["clean", percent(record.clean.acc), interval(record.clean.ci95), "", "", ""]]
    for spec, attack in record.attacks.items():
        cost = [f"{attack.seconds:.1f}", f"{attack.forwards:,}", f"{attack.backwards:,}"]
        rows.append([spec, percent(attack.robust_acc), interval(attack.ci95), *cost])
    if record.worst is not None:
        rows.append(["worst of all attacks", percent(record.worst.robust_acc), interval(record.worst.ci95), "", "", ""])
    if record.union is not None:
        rows.append(["union of all threats", percent(record.union.robust_acc), interval(record.union.ci95), "", "", ""])
    if record.training is not None:
        cost = [f"{record.training.seconds:.1f}", f"{record.training.forwards:,}", f"{record.training.backwards:,}"]
        rows.append([f"training ({record.training.epochs} epochs)", "", "", *cost])
    title = f"{record.defense} on {record.dataset}, {record.model}, {threat_name(record)}, seed {record.seed}, "
    headers = ["measured", "accuracy %", "95 % interval", "seconds", "forwards", "backwards"]
    align = ["left", *["right"] * 5]
    body = tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)
    reasons = "".join(f"\n  {reason}" for reason in record.sanity.reasons)
    return f"{title}{record.n_examples} test examples\n\n{body}\n\nverdict: {record.sanity.verdict}{reasons}"


def comparison(records: Sequence[Record], form: Format) -> str:
    """Several runs side by side, and the mean and standard deviation over the seeds of each recipe."""
    if form == "json":
        return json.dumps([_plain(record) for record in records], indent=1)
    specs = list(dict.fromkeys(spec for record in records for spec in record.attacks))
    if form == "csv":
        return _csv(records, specs)
    union = ["union"] if any(record.union for record in records) else []
    headers = ["defense", "data", "model", "threat", "seed", "clean", *specs, "worst", *union, "verdict", "training s"]
    rows = []
    for group in by_recipe(records):
        rows += [_row(record, specs, with_union=bool(union)) for record in group]
        if len(group) > 1:
            rows.append(_mean_row(group, specs, with_union=bool(union)))
    align = [*["left"] * 4, *["right"] * (len(headers) - 4)]
    style = "github" if form == "markdown" else "latex_booktabs"
    return tabulate(rows, headers, tablefmt=style, colalign=align, disable_numparse=True)


def by_recipe(records: Sequence[Record]) -> list[list[Record]]:
    """Runs that differ in their seed only, together."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.defense, record.config_hash), []).append(record)
    return list(groups.values())


def _row(record: Record, specs: Sequence[str], with_union: bool) -> list[str]:
    measured = [*(record.attacks.get(spec) for spec in specs), record.worst, *([record.union] if with_union else [])]
    return [
        record.defense, record.dataset, record.model, threat_name(record), str(record.seed),
        f"{percent(record.clean.acc)} {interval(record.clean.ci95)}",
        *("" if each is None else f"{percent(each.robust_acc)} {interval(each.ci95)}" for each in measured),
        record.sanity.verdict, "" if record.training is None else f"{record.training.seconds:.1f}",
    ]  # fmt: skip


def _mean_row(group: Sequence[Record], specs: Sequence[str], with_union: bool) -> list[str]:
    def mean(values: list[float | None], scale: float = 100) -> str:
        known = [scale * value for value in values if value is not None]
        return f"{statistics.mean(known):.1f} +- {statistics.stdev(known):.1f}" if len(known) == len(group) else ""

    first = group[0]
    return [
        first.defense, first.dataset, first.model, threat_name(first), f"mean of {len(group)}",
        mean([r.clean.acc for r in group]),
        *[mean([r.attacks[s].robust_acc if s in r.attacks else None for r in group]) for s in specs],
        mean([r.worst.robust_acc if r.worst else None for r in group]),
        *([mean([r.union.robust_acc if r.union else None for r in group])] if with_union else []), "",
        mean([r.training.seconds if r.training else None for r in group], scale=1),
    ]  # fmt: skip


def _plain(record: Record) -> dict[str, Any]:
    """The numbers of a record, fractions as they are."""
    return {
        "defense": record.defense,
        "suite": record.suite,
        "dataset": record.dataset,
        "model": record.model,
        "norm": record.threat.norm,
        "eps": record.threat.eps,
        "seed": record.seed,
        "n_examples": record.n_examples,
        "clean_acc": record.clean.acc,
        "robust_acc": {spec: attack.robust_acc for spec, attack in record.attacks.items()},
        "worst_acc": None if record.worst is None else record.worst.robust_acc,
        "union_acc": None if record.union is None else record.union.robust_acc,
        "verdict": record.sanity.verdict,
        "training_seconds": None if record.training is None else record.training.seconds,
    }


def _csv(records: Sequence[Record], specs: Sequence[str]) -> str:
    """One line a run, fractions, with the ends of each interval in columns of their own."""
    out = io.StringIO()
    plain = ["defense", "suite", "dataset", "model", "norm", "eps", "seed", "n_examples"]
    measured = ["clean", *specs, "worst", "union"]
    ends = [f"{what}{part}" for what in measured for part in ("", "_low", "_high")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*plain, *ends, "verdict", "training_seconds"])
    for record in records:
        values = _plain(record)
        cells: list[Any] = [values[key] for key in plain]
        cells += [record.clean.acc, *record.clean.ci95]
        for result in [*(record.attacks.get(spec) for spec in specs), record.worst, record.union]:
            cells += ["", "", ""] if result is None else [result.robust_acc, *result.ci95]
        writer.writerow([*cells, values["verdict"], values["training_seconds"]])
    return out.getvalue().rstrip("\n")
