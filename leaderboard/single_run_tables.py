"""One run as a table: its accuracies with intervals and costs, its bracket and its verdict."""

from bench.core.counts import counted
from bench.core.example_table import Accuracy
from bench.core.records import AttackResult, Bracket, ProofSummary, Record, Training
from leaderboard.render import interval, percent, render, threat_name, verdict_text, wrapped

BRACKET = ("bracket_certified", "bracket_robust")  # the two ends of a bracket among the accuracies of a record


def run_table(record: Record, width: int | None = None) -> str:
    """One run: each accuracy with its 95 % interval and its cost, and the cost of training.

    width: of the terminal that the table should fit; None for markdown.
    """
    title = f"{record.defense} on {record.dataset}, {record.model}, {threat_name(record.threat)}, seed {record.seed}"
    parts = [wrapped(f"{title}, {record.n_examples} test examples", width), accuracies_table(record, width)]
    return "\n\n".join([*parts, *evidence_lines(record, width), wrapped(verdict_lines(record), width)])


def evidence_lines(record: Record, width: int | None = None) -> list[str]:
    """What the bracket decided, and how many proofs there are, if the record has them."""
    parts = []
    if record.bracket is not None:
        parts.append(wrapped(bracket_stages(record.bracket), width))
    if record.proofs is not None and (record.proofs.count or record.proofs.missing):
        parts.append(wrapped(proofs_line(record.proofs), width))
    return parts


def accuracies_table(record: Record, width: int | None = None, contested: Accuracy | None = None) -> str:
    """Each accuracy of a record with its interval and its cost, and the cost of training.

    contested: the accuracy under attack after contests, if there are any.
    """
    cost = {spec: _cost(attack) for spec, attack in record.attacks.items()}
    cost |= {f"certified {spec}": [f"{proof.seconds:.1f}", "", ""] for spec, proof in record.certifiers.items()}
    cost |= {name: [f"{each.seconds:.1f}", "", ""] for name, each in record.corruptions.items()}
    by = f" ({', '.join(record.worst_by)})" if record.worst_by else ""
    names = {"worst": f"worst of all attacks{by}", "union": "union of all threats"}
    for spec, proof in record.certifiers.items():
        names[f"certified {spec}"] = f"certified by {spec}, mean radius {proof.mean_radius:.4g}"
    for name, each in record.corruptions.items():
        names[name] = f"{name} (severity 1 to 5: {', '.join(map(percent, each.by_severity))})"
    names["corrupted"] = f"mean of {len(record.corruptions)} corruptions"
    rows = [
        [names.get(name, name), percent(each.acc), interval(each.ci95), *cost.get(name, ["", "", ""])]
        for name, each in accuracies(record).items()
        if name not in BRACKET
    ]
    if record.bracket is not None:
        rows.append(_bracket_row(record.bracket))
    if contested is not None:
        rows.append(["after contests", percent(contested.acc), interval(contested.ci95), "", "", ""])
    if record.training is not None:
        epochs = counted(record.training.epochs, "epoch")
        rows.append([f"training ({epochs})", "", "", *_cost(record.training)])
    headers = ["measured", "accuracy %", "95 % interval, weights", "seconds", "forwards", "backwards"]
    return render(headers, rows, "markdown", "lrrrrr", width)


def verdict_lines(record: Record) -> str:
    return "\n  ".join([f"verdict: {verdict_text(record.sanity.verdict)}", *record.sanity.reasons])


def accuracies(record: Record) -> dict[str, Accuracy]:
    """The accuracies of a record in the order of its tables.

    Clean, attacks, worst, union, certifiers, bracket, corruptions and their mean.
    """
    attacked = [*record.attacks.items(), ("worst", record.attacked), ("union", record.union)]
    values = {"clean": record.clean}
    values |= {name: Accuracy(each.robust_acc, each.ci95) for name, each in attacked if each is not None}
    for spec, proof in record.certifiers.items():
        values[f"certified {spec}"] = Accuracy(proof.certified_acc, proof.ci95)
    if (bracket := record.bracket) is not None:
        values["bracket_certified"] = Accuracy(bracket.certified_acc, bracket.certified_ci95)
        values["bracket_robust"] = Accuracy(bracket.robust_acc, bracket.robust_ci95)
    values |= {name: Accuracy(each.acc, each.ci95) for name, each in record.corruptions.items()}
    return values if record.corrupted is None else values | {"corrupted": record.corrupted}


def _cost(result: AttackResult | Training) -> list[str]:
    return [f"{result.seconds:.1f}", f"{result.forwards:,}", f"{result.backwards:,}"]


def _bracket_row(bracket: Bracket) -> list[str]:
    """The interval that holds the robust accuracy on these examples, and the confidence interval on all examples."""
    forwards, backwards = (sum(getattr(s, way) for s in bracket.stages.values()) for way in ("forwards", "backwards"))
    confidence = interval((bracket.certified_ci95[0], bracket.robust_ci95[1]))
    cost = [f"{bracket.seconds:.1f}", f"{forwards:,}", f"{backwards:,}"]
    ends = f"[{percent(bracket.certified_acc)}, {percent(bracket.robust_acc)}]"
    return ["bracket [certified, attacked]", ends, confidence, *cost]


def proofs_line(proofs: ProofSummary) -> str:
    """How many certified examples have a proof."""
    if not proofs.count:
        return f"proofs: none ({proofs.missing})"
    return f"proofs: of {proofs.count:,} certified examples; `bench recheck` checks them"


def bracket_stages(bracket: Bracket) -> str:
    """How many examples each stage decided, how many are open and why, and the stages that were skipped."""
    decided = []
    for name, stage in bracket.stages.items():
        counts = [(stage.certified, "certified"), (stage.broken, "broken")]
        if any(n for n, _ in counts):
            decided.append(f"{name} {' and '.join(f'{n} {outcome}' for n, outcome in counts if n)}")
    limit, why = bracket.effective_time_limit, ""
    if bracket.cut_by_time and limit is not None:
        why = f" (cut by the time limit of {limit:g} s: another machine may decide more or fewer)"
    elif bracket.open and bracket.budget is not None:
        why = f" (budget: {bracket.budget:,} sub-problems for each example)"
    skipped = "".join(f"\n  skipped {name}: {reason}" for name, reason in bracket.skipped.items())
    return f"bracket: {bracket.open} open{why}; {', '.join(decided)}{skipped}"
