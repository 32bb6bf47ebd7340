"""Records as tables: one run in detail, or several side by side."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tabulate import tabulate

from bench.core.records import Bracket, Record

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
    for spec, proof in record.certifiers.items():
        what = f"certified by {spec}, mean radius {proof.mean_radius:.4g}"
        rows.append([what, percent(proof.certified_acc), interval(proof.ci95), f"{proof.seconds:.1f}", "", ""])
    if record.bracket is not None:
        rows.append(_bracket_row(record.bracket))
    if record.training is not None:
        cost = [f"{record.training.seconds:.1f}", f"{record.training.forwards:,}", f"{record.training.backwards:,}"]
        rows.append([f"training ({record.training.epochs} epochs)", "", "", *cost])
    title = f"{record.defense} on {record.dataset}, {record.model}, {threat_name(record)}, seed {record.seed}, "
    headers = ["measured", "accuracy %", "95 % interval", "seconds", "forwards", "backwards"]
    align = ["left", *["right"] * 5]
    body = tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)
    reasons = "".join(f"\n  {reason}" for reason in record.sanity.reasons)
    story = "" if record.bracket is None else f"\n\n{_story(record.bracket)}"
    return f"{title}{record.n_examples} test examples\n\n{body}{story}\n\nverdict: {record.sanity.verdict}{reasons}"


def _ends(bracket: Bracket) -> str:
    return f"[{percent(bracket.certified_acc)}, {percent(bracket.robust_acc)}]"


def _bracket_row(bracket: Bracket) -> list[str]:
    """The interval that holds the robust accuracy of these examples; around it, that of all examples."""
    forwards, backwards = (sum(getattr(s, way) for s in bracket.stages.values()) for way in ("forwards", "backwards"))
    around = interval((bracket.certified_ci95[0], bracket.robust_ci95[1]))
    cost = [f"{bracket.seconds:.1f}", f"{forwards:,}", f"{backwards:,}"]
    return ["bracket [certified, attacked]", _ends(bracket), around, *cost]


def _story(bracket: Bracket) -> str:
    """Who decided how many, how many are open, and what could not take part."""
    decided = [
        f"{name} {' and '.join(f'{n} {how}' for n, how in ((s.certified, 'certified'), (s.broken, 'broken')) if n)}"
        for name, s in bracket.stages.items()
        if s.certified or s.broken
    ]
    skipped = "".join(f"\n  skipped {name}: {reason}" for name, reason in bracket.skipped.items())
    return f"bracket: {bracket.open} open; {', '.join(decided)}{skipped}"


def runs_table(records: Sequence[Record], form: Format) -> str:
    """Several runs side by side, and the mean and standard deviation over the seeds of each recipe."""
    if form == "json":
        return json.dumps([_plain(record) for record in records], indent=1)
    specs = list(dict.fromkeys(spec for record in records for spec in record.attacks))
    if form == "csv":
        return _csv(records, specs)
    shown = Shown(
        attacks=specs,
        union=any(record.union for record in records),
        certifiers=_certifiers(records),
        bracket=any(record.bracket for record in records),
    )
    headers = ["defense", "data", "model", "threat", "seed", "clean", *shown.headers, "verdict", "training s"]
    rows = []
    for group in by_recipe(records):
        rows += [_row(record, shown) for record in group]
        if len(group) > 1:
            rows.append(_mean_row(group, shown))
    align = [*["left"] * 4, *["right"] * (len(headers) - 4)]
    style = "github" if form == "markdown" else "latex_booktabs"
    return tabulate(rows, headers, tablefmt=style, colalign=align, disable_numparse=True)


def by_recipe(records: Sequence[Record]) -> list[list[Record]]:
    """Runs that differ in their seed only, together."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.defense, record.config_hash), []).append(record)
    return list(groups.values())


@dataclass(frozen=True)
class Shown:
    """What of the records a comparison has columns for, because one of them has it."""

    attacks: Sequence[str]
    union: bool
    certifiers: Sequence[str]
    bracket: bool

    @property
    def headers(self) -> list[str]:
        union, bracket = ["union"] * self.union, ["bracket"] * self.bracket
        return [*self.attacks, "worst", *union, *(f"certified {spec}" for spec in self.certifiers), *bracket]


def _certifiers(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(spec for record in records for spec in record.certifiers))


def _row(record: Record, shown: Shown) -> list[str]:
    attacked = [*(record.attacks.get(spec) for spec in shown.attacks), record.worst, *[record.union] * shown.union]
    proven = [record.certifiers.get(spec) for spec in shown.certifiers]
    return [
        record.defense, record.dataset, record.model, threat_name(record), str(record.seed),
        f"{percent(record.clean.acc)} {interval(record.clean.ci95)}",
        *("" if each is None else f"{percent(each.robust_acc)} {interval(each.ci95)}" for each in attacked),
        *("" if each is None else f"{percent(each.certified_acc)} {interval(each.ci95)}" for each in proven),
        *["" if record.bracket is None else _ends(record.bracket)] * shown.bracket,
        record.sanity.verdict, "" if record.training is None else f"{record.training.seconds:.1f}",
    ]  # fmt: skip


def _mean_row(group: Sequence[Record], shown: Shown) -> list[str]:
    def mean(values: list[float | None], scale: float = 100) -> str:
        known = [scale * value for value in values if value is not None]
        return f"{statistics.mean(known):.1f} +- {statistics.stdev(known):.1f}" if len(known) == len(group) else ""

    first = group[0]
    proven = [[r.certifiers[s].certified_acc if s in r.certifiers else None for r in group] for s in shown.certifiers]
    low = mean([r.bracket.certified_acc if r.bracket else None for r in group])
    high = mean([r.bracket.robust_acc if r.bracket else None for r in group])
    return [
        first.defense, first.dataset, first.model, threat_name(first), f"mean of {len(group)}",
        mean([r.clean.acc for r in group]),
        *[mean([r.attacks[s].robust_acc if s in r.attacks else None for r in group]) for s in shown.attacks],
        mean([r.worst.robust_acc if r.worst else None for r in group]),
        *[mean([r.union.robust_acc if r.union else None for r in group])] * shown.union,
        *map(mean, proven),
        *[f"[{low}, {high}]" if low and high else ""] * shown.bracket, "",
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
        "certified_acc": {spec: proof.certified_acc for spec, proof in record.certifiers.items()},
        "bracket": None if record.bracket is None else _interval(record.bracket),
        "verdict": record.sanity.verdict,
        "training_seconds": None if record.training is None else record.training.seconds,
    }


def _interval(bracket: Bracket) -> dict[str, Any]:
    return {"certified_acc": bracket.certified_acc, "robust_acc": bracket.robust_acc, "open": bracket.open}


def _csv(records: Sequence[Record], specs: Sequence[str]) -> str:
    """One line a run, fractions, with the ends of each interval in columns of their own."""
    out = io.StringIO()
    plain = ["defense", "suite", "dataset", "model", "norm", "eps", "seed", "n_examples"]
    proofs = _certifiers(records)
    certified = [f"certified {spec}" for spec in proofs]
    measured = ["clean", *specs, "worst", "union", *certified, "bracket_certified", "bracket_robust"]
    ends = [f"{what}{part}" for what in measured for part in ("", "_low", "_high")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*plain, *ends, "bracket_open", "verdict", "training_seconds"])
    for record in records:
        values, bracket = _plain(record), record.bracket
        cells: list[Any] = [values[key] for key in plain]
        cells += [record.clean.acc, *record.clean.ci95]
        for result in [*(record.attacks.get(spec) for spec in specs), record.worst, record.union]:
            cells += ["", "", ""] if result is None else [result.robust_acc, *result.ci95]
        for proof in (record.certifiers.get(spec) for spec in proofs):
            cells += ["", "", ""] if proof is None else [proof.certified_acc, *proof.ci95]
        if bracket is None:
            cells += [""] * 7
        else:
            cells += [bracket.certified_acc, *bracket.certified_ci95, bracket.robust_acc, *bracket.robust_ci95]
            cells.append(bracket.open)
        writer.writerow([*cells, values["verdict"], values["training_seconds"]])
    return out.getvalue().rstrip("\n")
