"""Several runs side by side, and the mean of each recipe over its seeds."""

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import msgspec

from bench.core.example_table import Accuracy
from bench.core.records import Record, Size
from leaderboard.estimates import INTERVALS, Estimate, accuracy_text, estimate, open_text
from leaderboard.render import Format, render, threat_name, verdict_text, wrapped
from leaderboard.single_run_tables import BRACKET, accuracies

KEYS = ("defense", "seed", "config")  # identify a line; `config` only if the others do not suffice
SIZE_FIELDS = Size.__struct_fields__
SIZES = ("kept", "bits", "bytes", "FLOPs")  # of the networks; shown if one of them is compressed
OPTIONAL = ("config", "settings", "worst", "worst by", "bracket", "open", *SIZES)  # left out if all are empty
LEFT = ("defense", "config", "data", "model", "threat", "settings", "worst by", "interval of", "verdict")
SETTING = (
    "defense", "suite", "dataset", "model", "norm", "eps", "box", "config_hash", "epochs", "settings", "seed", "seeds",
    "n_examples", "interval_of",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line of runs_table: one run, or the mean over the seeds of a recipe."""

    records: Sequence[Record]

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def interval_of(self) -> str:
        """`recipe`; or `weights` for one run, or for evaluations of fixed weights."""
        return "recipe" if len(self.records) > 1 and self.first.training is not None else "weights"

    @cached_property
    def values(self) -> dict[str, Estimate]:
        """The accuracies that all of its runs have."""
        of_seeds = [accuracies(record) for record in self.records]
        if len(of_seeds) == 1:
            return {
                name: Estimate(acc=each.acc, low=each.ci95[0], high=each.ci95[1]) for name, each in of_seeds[0].items()
            }
        return {name: self._mean([each[name].acc for each in of_seeds]) for name in self._shared(of_seeds)}

    def _shared(self, of_seeds: Sequence[dict[str, Accuracy]]) -> list[str]:
        return [name for name in of_seeds[0] if all(name in each for each in of_seeds)]

    def _mean(self, shares: Sequence[float]) -> Estimate:
        n = min(record.n_examples for record in self.records)
        found = estimate(shares, n, recipe=self.interval_of == "recipe")
        return msgspec.structs.replace(found, spread=statistics.stdev(shares))  # of evaluations of fixed weights too

    @property
    def seconds(self) -> tuple[float, float | None] | None:
        """Mean and standard deviation of the training time; None if a run was not trained."""
        values = [record.training.seconds for record in self.records if record.training is not None]
        if len(values) < len(self.records):
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def runs_table(records: Sequence[Record], form: Format, width: int | None = None) -> str:
    """Several runs side by side, and the mean of each recipe with its interval and the spread of its seeds.

    width: of the terminal that markdown should fit; None for plain markdown.
    """
    lines = []
    for group in by_recipe(records):
        lines += [Line([record]) for record in group] + ([Line(group)] if len(group) > 1 else [])
    if form == "json":
        numbers = [_numbers(line) for line in lines]
        return render(list(numbers[0]), [list(each.values()) for each in numbers], "json")
    attacks = list(dict.fromkeys(spec for record in records for spec in record.attacks))
    certifiers = list(dict.fromkeys(f"certified {spec}" for record in records for spec in record.certifiers))
    corruptions = list(dict.fromkeys(name for record in records for name in record.corruptions))
    corruptions += ["corrupted"] if corruptions else []
    if form == "csv":
        return _csv(lines, ["clean", *attacks, "worst", "union", *certifiers, *BRACKET, *corruptions])
    union = ["union"] if any(record.union for record in records) else []
    table = _columns(lines, ["clean", *attacks, "worst", *union, *certifiers, *corruptions])
    shown = {name: cells for name, cells in table.items() if name not in OPTIONAL or any(cells)}
    keys = [name for name in KEYS if name in shown]
    rows = list(zip(*shown.values(), strict=True))
    align = "".join("l" if name in LEFT else "r" for name in shown)
    text = render(list(shown), rows, form, align, width, len(keys))
    note = (
        [wrapped(INTERVALS, width, "")] if form == "markdown" and any(len(line.records) > 1 for line in lines) else []
    )
    return "\n\n".join([text, *note])


def by_recipe(records: Sequence[Record]) -> list[list[Record]]:
    """Group the runs that differ only in their seed."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.defense, record.config_hash), []).append(record)
    return list(groups.values())


def given_settings(record: Record) -> dict[str, str]:
    """The settings in the command of a run, except the epochs; all others are the suite's or the defense's."""
    words = shlex.split(str(record.provenance.get("command", "")))
    given = [value.partition("=") for option, value in pairwise(words) if option == "--set"]
    return {key: value for key, _, value in given if key != "epochs"}


def _columns(lines: Sequence[Line], metrics: Sequence[str]) -> dict[str, list[str]]:
    """Header -> the cells of all lines."""
    seeds = [str(line.first.seed) if len(line.records) == 1 else f"mean of {len(line.records)}" for line in lines]
    places = [(line.first.defense, seed) for line, seed in zip(lines, seeds, strict=True)]
    ambiguous = len(set(places)) < len(places)
    columns: dict[str, list[str]] = {
        "defense": [line.first.defense for line in lines],
        "seed": seeds,
        "config": [line.first.config_hash[:6] if ambiguous else "" for line in lines],
        "data": [line.first.dataset for line in lines],
        "model": [line.first.model for line in lines],
        "threat": [threat_name(line.first.threat) for line in lines],
        "n": [str(line.first.n_examples) for line in lines],
        "epochs": ["" if line.first.training is None else str(line.first.training.epochs) for line in lines],
        "settings": [" ".join(f"{k}={v}" for k, v in given_settings(line.first).items()) for line in lines],
    }
    for metric in metrics:
        columns[metric] = [accuracy_text(line.values.get(metric)) for line in lines]
        if metric == "worst":
            columns["worst by"] = [", ".join(_worst_by(line)) for line in lines]
    columns["bracket"] = [_bracket_text(line) for line in lines]
    columns["open"] = [_open_text(line) for line in lines]
    columns |= _size_columns(lines)
    columns["interval of"] = [line.interval_of for line in lines]
    columns["verdict"] = [verdict_text(line.first.sanity.verdict) if len(line.records) == 1 else "" for line in lines]
    columns["training s"] = [_seconds_text(line) for line in lines]
    return columns


def _worst_by(line: Line) -> list[str]:
    return list(dict.fromkeys(source for record in line.records for source in record.worst_by or ()))


def _bracket_text(line: Line) -> str:
    ends = [line.values.get(end) for end in BRACKET]
    texts = ["" if end is None else accuracy_text(end).partition(" [")[0] for end in ends]
    return f"[{', '.join(texts)}]" if all(texts) else ""


def _open_text(line: Line) -> str:
    brackets = [record.bracket for record in line.records if record.bracket is not None]
    if len(brackets) < len(line.records):
        return ""
    mean = statistics.fmean(bracket.open for bracket in brackets)
    return open_text(mean, any(bracket.cut_by_time for bracket in brackets))


def _largest(line: Line) -> Size | None:
    """The largest network over the seeds, in bytes."""
    sizes = [record.size for record in line.records if record.size is not None]
    return max(sizes, key=lambda size: size.bytes, default=None)


def _size_columns(lines: Sequence[Line]) -> dict[str, list[str]]:
    """The SIZES; empty cells if no network is compressed."""
    sizes = [_largest(line) for line in lines]
    if not any(size is not None and size.is_compressed for size in sizes):
        return {name: [""] * len(lines) for name in SIZES}
    texts = [
        ("",) * len(SIZES)
        if size is None
        else (f"{size.kept:,} of {size.weights:,}", f"{size.bits:,}", f"{size.bytes:,}", f"{size.flops:,}")
        for size in sizes
    ]
    return {name: [text[number] for text in texts] for number, name in enumerate(SIZES)}


def _seconds_text(line: Line) -> str:
    if line.seconds is None:
        return ""
    mean, spread = line.seconds
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} +- {spread:.1f}"


def _numbers(line: Line) -> dict[str, Any]:
    """The numbers of a line; accuracies are fractions, and means over seeds if there are several."""
    first, values, one = line.first, line.values, len(line.records) == 1
    brackets = [record.bracket for record in line.records if record.bracket is not None]
    acc = {name: value.acc for name, value in values.items()}
    return {
        "defense": first.defense, "suite": first.suite, "dataset": first.dataset, "model": first.model,
        "norm": first.threat.norm, "eps": first.threat.eps, "box": first.threat.box,
        "config_hash": first.config_hash,
        "epochs": first.training and first.training.epochs, "settings": given_settings(first),
        "seed": first.seed if one else None, "seeds": [record.seed for record in line.records],
        "n_examples": first.n_examples, "size": (size := _largest(line)) and msgspec.to_builtins(size),
        "interval_of": line.interval_of,
        "clean_acc": acc["clean"], "robust_acc": {spec: acc[spec] for spec in first.attacks if spec in acc},
        "worst_acc": acc.get("worst"), "worst_by": _worst_by(line), "union_acc": acc.get("union"),
        "certified_acc": {spec: acc[key] for spec in first.certifiers if (key := f"certified {spec}") in acc},
        "corrupted_acc": acc.get("corrupted"),
        "corruptions": {name: acc[name] for name in first.corruptions if name in acc},
        "bracket": None if len(brackets) < len(line.records) else {
            "certified_acc": acc["bracket_certified"], "robust_acc": acc["bracket_robust"],
            "open": statistics.mean(bracket.open for bracket in brackets),
            "truncated": any(bracket.cut_by_time for bracket in brackets),
        },
        "intervals": {name: [value.low, value.high] for name, value in values.items()},
        "spreads": {name: value.spread for name, value in values.items()},
        "verdict": first.sanity.verdict if one else None,
        "training_seconds": line.seconds and line.seconds[0],
    }  # fmt: skip


def _csv(lines: Sequence[Line], columns: Sequence[str]) -> str:
    """One row for each line, with accuracies as fractions; interval and spread in columns of their own."""
    ends = [f"{name}{end}" for name in columns for end in ("", "_low", "_high", "_spread")]
    rows = []
    for line in lines:
        numbers, bracket = _numbers(line), _numbers(line)["bracket"] or {}
        numbers |= {"settings": " ".join(f"{k}={v}" for k, v in numbers["settings"].items()),
                    "seeds": len(line.records)}  # fmt: skip
        cells = [numbers[key] for key in SETTING]
        for value in map(line.values.get, columns):
            cells += [None] * 4 if value is None else [value.acc, value.low, value.high, value.spread]
        rest = [", ".join(numbers["worst_by"]), bracket.get("open"), bracket.get("truncated"), numbers["verdict"]]
        size = numbers["size"] or {}
        rows.append([*cells, *rest, numbers["training_seconds"], *(size.get(name) for name in SIZE_FIELDS)])
    last = ["worst_by", "bracket_open", "bracket_truncated", "verdict", "training_seconds", *SIZE_FIELDS]
    return render([*SETTING, *ends, *last], rows, "csv")
