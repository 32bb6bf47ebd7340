"""Tables of records: one run in detail, or several runs side by side."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.core.example_table import Accuracy
from bench.core.records import AttackResult, Bracket, Record, Training
from leaderboard.render import Format, interval, percent, render, threat_name, verdict_text

BRACKET = ("bracket_certified", "bracket_robust")  # the two ends of a bracket among the accuracies of a record


def run_table(record: Record) -> str:
    """One run in markdown: each accuracy with its 95 % interval and its cost, and the cost of training."""
    cost = {spec: _cost(attack) for spec, attack in record.attacks.items()}
    cost |= {f"certified {spec}": [f"{proof.seconds:.1f}", "", ""] for spec, proof in record.certifiers.items()}
    names = {"worst": "worst of all attacks", "union": "union of all threats"}
    for spec, proof in record.certifiers.items():
        names[f"certified {spec}"] = f"certified by {spec}, mean radius {proof.mean_radius:.4g}"
    rows = [
        [names.get(name, name), percent(each.acc), interval(each.ci95), *cost.get(name, ["", "", ""])]
        for name, each in accuracies(record).items()
        if name not in BRACKET
    ]
    if record.bracket is not None:
        rows.append(_bracket_row(record.bracket))
    if record.training is not None:
        rows.append([f"training ({record.training.epochs} epochs)", "", "", *_cost(record.training)])
    title = f"{record.defense} on {record.dataset}, {record.model}, {threat_name(record.threat)}, seed {record.seed}"
    headers = ["measured", "accuracy %", "95 % interval", "seconds", "forwards", "backwards"]
    parts = [f"{title}, {record.n_examples} test examples", render(headers, rows, align="lrrrrr")]
    if record.bracket is not None:
        parts.append(_bracket_stages(record.bracket))
    verdict = f"verdict: {verdict_text(record.sanity.verdict)}"
    return "\n\n".join([*parts, "\n  ".join([verdict, *record.sanity.reasons])])


def accuracies(record: Record) -> dict[str, Accuracy]:
    """The accuracies of a record in the order of its tables: clean, attacks, worst, union, certifiers, bracket."""
    attacked = [*record.attacks.items(), ("worst", record.worst), ("union", record.union)]
    values = {"clean": record.clean}
    values |= {name: Accuracy(each.robust_acc, each.ci95) for name, each in attacked if each is not None}
    for spec, proof in record.certifiers.items():
        values[f"certified {spec}"] = Accuracy(proof.certified_acc, proof.ci95)
    if (bracket := record.bracket) is not None:
        values["bracket_certified"] = Accuracy(bracket.certified_acc, bracket.certified_ci95)
        values["bracket_robust"] = Accuracy(bracket.robust_acc, bracket.robust_ci95)
    return values


def _cost(result: AttackResult | Training) -> list[str]:
    return [f"{result.seconds:.1f}", f"{result.forwards:,}", f"{result.backwards:,}"]


def _ends(bracket: Bracket) -> str:
    return f"[{percent(bracket.certified_acc)}, {percent(bracket.robust_acc)}]"


def _bracket_row(bracket: Bracket) -> list[str]:
    """The interval that holds the robust accuracy on these examples, and the confidence interval on all examples."""
    forwards, backwards = (sum(getattr(s, way) for s in bracket.stages.values()) for way in ("forwards", "backwards"))
    confidence = interval((bracket.certified_ci95[0], bracket.robust_ci95[1]))
    cost = [f"{bracket.seconds:.1f}", f"{forwards:,}", f"{backwards:,}"]
    return ["bracket [certified, attacked]", _ends(bracket), confidence, *cost]


def _bracket_stages(bracket: Bracket) -> str:
    """How many examples each stage decided, how many are open, and the stages that were skipped."""
    decided = []
    for name, stage in bracket.stages.items():
        counts = [(stage.certified, "certified"), (stage.broken, "broken")]
        if any(n for n, _ in counts):
            decided.append(f"{name} {' and '.join(f'{n} {outcome}' for n, outcome in counts if n)}")
    skipped = "".join(f"\n  skipped {name}: {reason}" for name, reason in bracket.skipped.items())
    return f"bracket: {bracket.open} open; {', '.join(decided)}{skipped}"


def runs_table(records: Sequence[Record], form: Format) -> str:
    """Several runs side by side, and the mean and standard deviation over the seeds of each recipe."""
    if form == "json":
        numbers = [_numbers(record) for record in records]
        return render(list(numbers[0]), [list(each.values()) for each in numbers], "json")
    attacks = list(dict.fromkeys(spec for record in records for spec in record.attacks))
    certifiers = list(dict.fromkeys(f"certified {spec}" for record in records for spec in record.certifiers))
    if form == "csv":
        return _csv(records, ["clean", *attacks, "worst", "union", *certifiers, *BRACKET])
    union = ["union"] if any(record.union for record in records) else []
    columns = ["clean", *attacks, "worst", *union, *certifiers]
    bracket = ["bracket"] if any(record.bracket for record in records) else []
    rows = []
    for group in by_recipe(records):
        rows += [_row(record, columns, bool(bracket)) for record in group]
        if len(group) > 1:
            rows.append(_mean_row(group, columns, bool(bracket)))
    headers = ["defense", "data", "model", "threat", "seed", *columns, *bracket, "verdict", "training s"]
    return render(headers, rows, form, "llll" + "r" * (len(headers) - 4))


def by_recipe(records: Sequence[Record]) -> list[list[Record]]:
    """Runs that differ only in their seed, together."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.defense, record.config_hash), []).append(record)
    return list(groups.values())


def _recipe_cells(record: Record) -> list[str]:
    return [record.defense, record.dataset, record.model, threat_name(record.threat)]


def _row(record: Record, columns: Sequence[str], bracket: bool) -> list[str]:
    values = accuracies(record)
    cells = [f"{percent(values[key].acc)} {interval(values[key].ci95)}" if key in values else "" for key in columns]
    if bracket:
        cells.append("" if record.bracket is None else _ends(record.bracket))
    seconds = "" if record.training is None else f"{record.training.seconds:.1f}"
    return [*_recipe_cells(record), str(record.seed), *cells, verdict_text(record.sanity.verdict), seconds]


def _mean_row(group: Sequence[Record], columns: Sequence[str], bracket: bool) -> list[str]:
    def mean(values: list[float]) -> str:
        complete = len(values) == len(group)
        return f"{statistics.mean(values):.1f} +- {statistics.stdev(values):.1f}" if complete else ""

    of_seeds = [accuracies(record) for record in group]
    means = {key: mean([100 * each[key].acc for each in of_seeds if key in each]) for key in (*columns, *BRACKET)}
    cells = [means[key] for key in columns]
    if bracket:
        low, high = (means[key] for key in BRACKET)
        cells.append(f"[{low}, {high}]" if low and high else "")
    seconds = mean([record.training.seconds for record in group if record.training is not None])
    return [*_recipe_cells(group[0]), f"mean of {len(group)}", *cells, "", seconds]


def _numbers(record: Record) -> dict[str, Any]:
    """The numbers of a record; accuracies are fractions."""
    bracket = record.bracket
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
        "bracket": bracket
        and {"certified_acc": bracket.certified_acc, "robust_acc": bracket.robust_acc, "open": bracket.open},
        "verdict": record.sanity.verdict,
        "training_seconds": None if record.training is None else record.training.seconds,
    }


def _csv(records: Sequence[Record], columns: Sequence[str]) -> str:
    """One line for each run, with accuracies as fractions and the ends of each interval in columns of their own."""
    setting = ["defense", "suite", "dataset", "model", "norm", "eps", "seed", "n_examples"]
    ends = [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
    rows = []
    for record in records:
        numbers, values = _numbers(record), accuracies(record)
        cells = [numbers[key] for key in setting]
        for key in columns:
            cells += [values[key].acc, *values[key].ci95] if key in values else [None] * 3
        rest = [record.bracket and record.bracket.open, numbers["verdict"], numbers["training_seconds"]]
        rows.append([*cells, *rest])
    return render([*setting, *ends, "bracket_open", "verdict", "training_seconds"], rows, "csv")
