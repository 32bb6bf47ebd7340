"""The board of a suite from its published results: each entry as a row."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.core.config import get_suite, suites
from bench.core.example_table import Flags, Threat, threat_of
from bench.core.records import AttackResult, CertifierResult, Record
from leaderboard.board_data import Board, Cost, Curve, Estimate, Measured, Row, Seed, Status
from leaderboard.published_results import Entry, EvaluatedRun, read_entries
from leaderboard.ranks import RULE, Ranks, rank
from leaderboard.run_tables import threat_name
from leaderboard.statistics import clopper_pearson

VERDICTS = ("clean", "unchecked", "suspect", "unreliable")  # the worst last
TOLERANCE = 1e-6
POINTS = 41  # of a curve that is drawn from distances
EPS_OPTION = re.compile(r":eps=[^:]+")


def build_board(results: Path, suite: str) -> Board:
    """All entries of a suite, the most robust first; UserError where a file of one is not what it must be."""
    entries = read_entries(results, suite)
    ranks = rank(entries)
    rows = {i: _row(entry, ranks, i) for i, entry in enumerate(entries)}
    order = sorted(rows, key=lambda i: _order(rows[i]))
    groups = _groups(ranks, order)
    known = suites().get(suite)
    return Board(
        suite=suite, summary=known.summary if known else "", rule=RULE,
        rows=tuple(msgspec.structs.replace(rows[i], group=groups.get(i)) for i in order),
    )  # fmt: skip


def _groups(ranks: Ranks, order: Sequence[int]) -> dict[int, int]:
    """Entry -> group: each is led by the first entry that the leader before it is significantly better than."""
    groups: dict[int, int] = {}
    number, leader = 0, -1
    for i in order:
        if ranks.ranked[i]:
            if not number or ranks.better[leader, i]:
                number, leader = number + 1, i
            groups[i] = number
    return groups


def _order(row: Row) -> tuple[float, float, str]:
    return -(row.attacked.acc if row.attacked else -1.0), -(row.clean.acc if row.clean else -1.0), row.name


def _row(entry: Entry, ranks: Ranks, i: int) -> Row:
    if entry.reported is not None:
        return _reported(entry, max(1, int(ranks.ranked.sum())))
    first, runs = entry.runs[0].record, entry.runs
    verdict = max((run.record.sanity.verdict for run in runs), key=VERDICTS.index)
    claimed = bool(ranks.ranked[i])
    return Row(
        name=entry.name, title=entry.about.title, kind="recipe" if entry.recipe else "weights", status=_status(runs),
        dataset=first.dataset, norm=first.threat.norm, eps=first.threat.eps, threat=threat_name(first),
        architecture=first.model, parameters=first.parameters, extra_data=entry.about.extra_data,
        clean=_estimate([_share(run.clean) for run in runs], runs),
        attacked=_estimate([_share(run.robust) for run in runs], runs) if entry.measured else None,
        certified=_estimate([_share(run.certified) for run in runs], runs) if _certifiers(runs) else None,
        rank=int(ranks.low[i]) if claimed else None,
        rank_low=int(ranks.low[i]), rank_high=int(ranks.high[i]) if claimed else max(1, int(ranks.ranked.sum())),
        verdict=verdict, reasons=tuple(dict.fromkeys(r for run in runs for r in run.record.sanity.reasons)),
        cost=_cost([run.record for run in runs]), attacks=_attacks(runs), certifiers=_certified(runs),
        curves=tuple(_curves(runs)), seeds=tuple(_seed(run) for run in runs),
        command=_command([run.record for run in runs]), paper=entry.about.paper, url=entry.about.url,
        licence=entry.about.licence, note=_note(entry),
    )  # fmt: skip


def _reported(entry: Entry, n: int) -> Row:
    """What RobustBench says of a model: without examples, so without a rank, and without an interval."""
    info = entry.reported
    assert info is not None

    def said(acc: float | None) -> Estimate | None:
        return None if acc is None else Estimate(acc=acc, low=acc, high=acc)

    suite = get_suite(entry.suite)
    return Row(
        name=entry.name, title=entry.about.title, kind="reported", status="reported, not verified",
        dataset=info.dataset, norm=suite.norm, eps=suite.eps, threat=f"{suite.norm} {info.eps}",
        architecture=info.architecture or "", parameters=None, extra_data=info.additional_data,
        clean=said(info.clean), attacked=said(info.attacked), certified=None, rank=None, rank_low=1, rank_high=n,
        verdict="unreliable" if info.unreliable else "unchecked", paper=entry.about.paper, url=entry.about.url,
        licence=entry.about.licence, note=entry.about.note,
    )  # fmt: skip


def _status(runs: Sequence[EvaluatedRun]) -> Status:
    there = all(run.record.artifacts[name].url for run in runs for name in ("weights", "witnesses"))
    return "re-checkable" if there else "not re-checkable"


def _share(flags: Flags) -> float:
    return int(np.count_nonzero(flags)) / len(flags)  # a hundred times faster than the mean of bools


def _estimate(shares: Sequence[float], runs: Sequence[EvaluatedRun]) -> Estimate:
    """The mean over seeds; its interval is that of one seed with the mean's hits, for all share their examples."""
    mean, n = statistics.fmean(shares), min(len(run.clean) for run in runs)
    low, high = clopper_pearson(mean * n, n)
    return Estimate(
        acc=mean, low=float(low), high=float(high), spread=statistics.stdev(shares) if len(shares) > 1 else None
    )


def _over_seeds(spec: str, runs: Sequence[EvaluatedRun], results: Iterable[AttackResult | CertifierResult]) -> Measured:
    found = list(results)
    accuracy = [each.robust_acc if isinstance(each, AttackResult) else each.certified_acc for each in found]
    attacks = [each for each in found if isinstance(each, AttackResult)]
    return Measured(
        spec=spec, accuracy=_estimate(accuracy, runs), seconds=statistics.fmean(each.seconds for each in found),
        forwards=statistics.fmean(each.forwards for each in attacks) if attacks else None,
        backwards=statistics.fmean(each.backwards for each in attacks) if attacks else None,
    )  # fmt: skip


def _specs(runs: Sequence[EvaluatedRun], of: Callable[[Record], Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(spec for run in runs for spec in of(run.record)))


def _attacks(runs: Sequence[EvaluatedRun]) -> tuple[Measured, ...]:
    specs = _specs(runs, lambda record: record.attacks)
    return tuple(
        _over_seeds(s, runs, (run.record.attacks[s] for run in runs if s in run.record.attacks)) for s in specs
    )


def _certified(runs: Sequence[EvaluatedRun]) -> tuple[Measured, ...]:
    specs = _specs(runs, lambda record: record.certifiers)
    return tuple(
        _over_seeds(s, runs, (run.record.certifiers[s] for run in runs if s in run.record.certifiers)) for s in specs
    )


def _certifiers(runs: Sequence[EvaluatedRun]) -> bool:
    """Was every run certified by something that certifies the model itself?"""
    return all(
        run.record.bracket is not None or any(c.kind == "deterministic" for c in run.record.certifiers.values())
        for run in runs
    )


def _cost(records: Sequence[Record]) -> Cost:
    def mean(values: Iterable[float]) -> float | None:
        known = list(values)
        return statistics.fmean(known) if len(known) == len(records) else None

    trained = [record.training for record in records if record.training is not None]
    about = records[0].provenance
    n = about.get("threads")
    threads = f", {n} thread{'' if n == 1 else 's'}" if about.get("device") == "cpu" else ""
    return Cost(
        training_seconds=mean(each.seconds for each in trained),
        training_passes=mean(each.forwards + each.backwards for each in trained),
        evaluation_passes=statistics.fmean(_passes(record) for record in records),
        hardware=f"{about.get('hardware')}{threads}",
    )


def _passes(record: Record) -> int:
    stages = () if record.bracket is None else record.bracket.stages.values()
    return sum(each.forwards + each.backwards for each in (*record.attacks.values(), *stages))


def _curves(runs: Sequence[EvaluatedRun]) -> Iterable[Curve]:
    """Accuracy against eps: an attack that ran at several, and the distances of minimum-norm attacks."""
    first = runs[0].record
    families: dict[tuple[str, str], dict[float, list[float]]] = {}
    for run in runs:
        for spec, result in run.record.attacks.items():
            threat = threat_of(spec, run.record.threat)
            points = families.setdefault((threat.norm, EPS_OPTION.sub("", spec)), {})
            points.setdefault(threat.eps, []).append(result.robust_acc)
    for (norm, label), points in families.items():
        if len(points) > 1:
            found = {0.0: [_share(run.clean) for run in runs]} | points
            eps = sorted(found)
            yield Curve(norm=norm, label=label, eps=tuple(eps), acc=tuple(statistics.fmean(found[e]) for e in eps))
    for spec in dict.fromkeys(spec for run in runs for spec in run.distances):
        yield _distance_curve(spec, threat_of(spec, first.threat), [run for run in runs if spec in run.distances])


def _distance_curve(spec: str, threat: Threat, runs: Sequence[EvaluatedRun]) -> Curve:
    grid = np.linspace(0, 2 * threat.eps, POINTS)
    beyond = grid * (1 + TOLERANCE)  # distances are kept in float32
    right = [run.distances[spec][run.clean] for run in runs]
    acc = [statistics.fmean((d > e).sum() / len(run.clean) for d, run in zip(right, runs, strict=True)) for e in beyond]
    return Curve(norm=threat.norm, label=spec, eps=tuple(map(float, grid)), acc=tuple(acc))


def _seed(run: EvaluatedRun) -> Seed:
    record, weights = run.record, run.record.artifacts["weights"]
    about = record.provenance
    told = {key: about.get(key) for key in ("finished", "git_commit", "hardware", "device", "threads", "platform")}
    versions = about.get("versions")
    told |= versions if isinstance(versions, dict) else {}
    return Seed(
        seed=record.seed, config_hash=record.config_hash, n_examples=record.n_examples,
        clean=_share(run.clean), attacked=_share(run.robust), certified=_share(run.certified),
        weights=weights.sha256, weights_url=weights.url,
        provenance={key: str(value) for key, value in told.items() if value is not None},
    )  # fmt: skip


def _command(records: Sequence[Record]) -> str | None:
    """That of the first seed, for all seeds."""
    command = records[0].provenance.get("command")
    if not isinstance(command, str):
        return None
    return re.sub(r"--seeds \d+$", f"--seeds {','.join(str(record.seed) for record in records)}", command)


def _note(entry: Entry) -> str | None:
    told = [entry.about.note] if entry.about.note else []
    for run in entry.runs:
        told += [
            f"Seed {run.record.seed}: {contest.by} broke {len(contest.broken)} more examples ({contest.finished})."
            for contest in run.contests
        ]
    return " ".join(told) or None
