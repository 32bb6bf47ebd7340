"""Builds the board of a suite from its published results: one row for each entry."""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.core.config import CORRUPTIONS, get_suite, suites
from bench.core.example_table import Flags
from bench.core.records import VERDICTS, AttackResult, Bracket, BracketStage, CertifierResult, Record
from leaderboard.board_data import (
    Board,
    Cost,
    Measured,
    Row,
    Seed,
    SeedStatus,
    StageMeans,
    Status,
    Trained,
)
from leaderboard.entry_results import Results, attacks_of, certificates_of, certifiers_of, curves, passes_curves, share
from leaderboard.estimates import Estimate, estimate
from leaderboard.published_results import Entry, EvaluatedRun, left_out, read_entries
from leaderboard.ranks import RULE, Ranks, groups, rank
from leaderboard.render import threat_name
from leaderboard.training_passes import comparable_passes, computes_bounds

Runs = Sequence[EvaluatedRun]  # the seeds of an entry
NO_STAGE = BracketStage(0, 0, 0, 0, 0, 0.0)  # for a bracket in which the stage had nothing to try


@dataclass(frozen=True)
class RankedBoard:
    """A board, the entries and ranks that it was built from, and its order as positions in `entries`."""

    board: Board
    entries: Sequence[Entry]
    ranks: Ranks
    order: Sequence[int]


def build_board(results: Path, suite: str) -> Board:
    """Build the board from all readable entries of a suite: those with a rank first, in each part the most robust."""
    return ranked_board(results, suite).board


def ranked_board(results: Path, suite: str) -> RankedBoard:
    """Like build_board, but also return what the board was built from."""
    entries, problems = read_entries(results, suite)
    while True:
        ranks = rank(entries)
        rows, broken = _rows(entries, ranks)
        if not broken:
            break
        problems += broken.values()
        entries = [entry for entry in entries if entry.name not in broken]  # and the others are ranked without them
    order = sorted(rows, key=lambda i: _order(rows[i]))
    positions = {i: n for n, i in enumerate((i for i in order if rows[i].kind == "reported"), 1)}
    group = groups(ranks, order)
    known = suites().get(suite)
    board = Board(
        suite=suite, summary=known.summary if known else "", rule=RULE,
        rows=tuple(msgspec.structs.replace(rows[i], group=group.get(i), position=positions.get(i)) for i in order),
        left_out=tuple(problems),
    )  # fmt: skip
    return RankedBoard(board, entries, ranks, order)


def _rows(entries: Sequence[Entry], ranks: Ranks) -> tuple[dict[int, Row], dict[str, str]]:
    """The row of each entry by its position, and the problems of entries without a row."""
    rows: dict[int, Row] = {}
    broken: dict[str, str] = {}
    for i, entry in enumerate(entries):
        try:
            rows[i] = _row(entry, ranks, i)
        except Exception as error:  # the records may hold anything that has the right type
            broken[entry.name] = left_out(entry.name, error)
    return rows, broken


def _order(row: Row) -> tuple[bool, float, float, str]:
    """The entries with a rank first, then the others; in both parts the most robust first."""
    return (
        row.rank is None,
        -(row.attacked.acc if row.attacked else -1.0),
        -(row.clean.acc if row.clean else -1.0),
        row.name,
    )


def _row(entry: Entry, ranks: Ranks, i: int) -> Row:
    if entry.reported is not None:
        return _reported(entry)
    runs, about = entry.runs, entry.about
    records = [run.record for run in runs]
    first, ranked, proven = records[0], bool(ranks.ranked[i]), all(record.certifies_model for record in records)
    brackets = [record.bracket for record in records if record.bracket is not None]
    return Row(
        name=entry.name, title=about.title, kind="recipe" if entry.recipe else "weights", status=_status(records),
        dataset=first.dataset, norm=first.threat.norm, eps=first.threat.eps, threat=threat_name(first.threat),
        architecture=first.model, parameters=first.parameters, extra_data=about.extra_data,
        clean=_estimate([share(run.clean) for run in runs], runs),
        attacked=_estimate([share(run.robust) for run in runs], runs) if entry.measured else None,
        attacked_by=tuple(dict.fromkeys(source for run in runs for source in run.robust_by)),
        certified=_estimate([share(run.certified) for run in runs], runs) if proven else None,
        certificates=certificates_of(runs), trained=_trained(entry),
        open=statistics.fmean(b.open for b in brackets) if len(brackets) == len(runs) else None,
        truncated=any(bracket.cut_by_time for bracket in brackets),
        budget=brackets[0].budget if brackets else None,
        decided=tuple(_decided(brackets)) if len(brackets) == len(runs) else (),
        rank=int(ranks.low[i]) if ranked else None, rank_low=int(ranks.low[i]) if ranked else None,
        rank_high=int(ranks.high[i]) if ranked else None,
        verdict=max((record.sanity.verdict for record in records), key=list(VERDICTS).index),
        reasons=tuple(dict.fromkeys(reason for record in records for reason in record.sanity.reasons)),
        cost=_cost(records), attacks=_over_seeds(runs, attacks_of), certifiers=_over_seeds(runs, certifiers_of),
        curves=tuple(curves(runs)), passes_curves=tuple(passes_curves(runs)),
        seeds=tuple(_seed(run) for run in runs), command=_command(records), paper=about.paper, url=about.url,
        code=about.code, licence=about.licence, note=_note(entry),
    )  # fmt: skip


def _reported(entry: Entry) -> Row:
    """The row of a model that RobustBench lists. There are no examples, so it has no interval and no rank."""
    info, about, suite = entry.reported, entry.about, get_suite(entry.suite)
    assert info is not None
    corrupted = suite.norm == CORRUPTIONS

    def reported(acc: float | None) -> Estimate | None:
        return None if acc is None else Estimate(acc=acc, low=acc, high=acc, interval_of=None)

    return Row(
        name=entry.name, title=about.title, kind="reported", status="reported, not verified",
        dataset=info.dataset, norm=suite.norm, eps=suite.eps,
        threat=suite.norm if corrupted else f"{suite.norm} {info.eps}",
        architecture=info.architecture or "", parameters=None, extra_data=info.additional_data, data=info.data,
        clean=reported(info.clean), attacked=reported(info.corrupted if corrupted else info.attacked),
        attacked_by=("corruptions" if corrupted else info.attacked_by,), certified=None, rank=None, rank_low=None,
        rank_high=None, verdict="unreliable" if info.unreliable else "unchecked", paper=about.paper, url=about.url,
        licence=about.licence, note=about.note,
    )  # fmt: skip


def _status(records: Sequence[Record]) -> Status:
    seeds = {_seed_status(record) for record in records}
    if seeds == {"re-checkable"}:
        return "re-checkable"
    return "partly re-checkable" if seeds == {"re-checkable", "can be retrained"} else "not re-checkable"


def _seed_status(record: Record) -> SeedStatus:
    """Re-checkable if weights and witnesses are stored beside the record or at an address."""
    files = [record.artifacts[name] for name in ("weights", "witnesses")]
    if all(file.path or file.url for file in files):
        return "re-checkable"
    trained = record.training is not None and record.provenance.get("command") is not None
    return "can be retrained" if trained else "not re-checkable"


def _estimate(shares: Sequence[float], runs: Runs) -> Estimate:
    """The mean over seeds. runs: trainings of one recipe, or evaluations of fixed weights."""
    recipe = len(shares) > 1 and runs[0].record.training is not None
    return estimate(shares, min(len(run.clean) for run in runs), recipe=recipe)


def _trained(entry: Entry) -> Trained:
    if not entry.recipe:
        return "elsewhere"  # fixed weights: their training data is unknown
    return "by its authors only" if entry.reproduced is None else "reproduced"


def _over_seeds(runs: Runs, of: Callable[[EvaluatedRun], Results]) -> tuple[Measured, ...]:
    """The means of each attack (or certifier) over the seeds that ran it."""
    results: dict[str, list[tuple[AttackResult | CertifierResult, Flags]]] = {}
    for run in runs:
        for spec, result in of(run).items():
            results.setdefault(spec, []).append(result)
    return tuple(_measured(spec, each, runs) for spec, each in results.items())


def _measured(spec: str, found: Sequence[tuple[AttackResult | CertifierResult, Flags]], runs: Runs) -> Measured:
    results, shares = [result for result, _ in found], [share(flags) for _, flags in found]
    attacks = [each for each in results if isinstance(each, AttackResult)]
    return Measured(
        spec=spec, accuracy=_estimate(shares, runs), seconds=statistics.fmean(each.seconds for each in results),
        forwards=statistics.fmean(each.forwards for each in attacks) if attacks else None,
        backwards=statistics.fmean(each.backwards for each in attacks) if attacks else None,
    )  # fmt: skip


def _decided(brackets: Sequence[Bracket]) -> Iterable[StageMeans]:
    """The stages of the brackets of all seeds."""
    for name in dict.fromkeys(name for bracket in brackets for name in bracket.stages):
        stages = [bracket.stages.get(name, NO_STAGE) for bracket in brackets]
        means = {
            field: statistics.fmean(getattr(stage, field) for stage in stages)
            for field in ("tried", "certified", "broken", "forwards", "backwards", "seconds")
        }
        optional = {
            field: statistics.fmean(getattr(stage, field) or 0 for stage in stages)
            for field in ("nodes", "proofs")
            if any(getattr(stage, field) is not None for stage in stages)
        }
        yield StageMeans(stage=name, **means, **optional)


def _cost(records: Sequence[Record]) -> Cost:
    training = [record.training for record in records if record.training is not None]
    trained = len(training) == len(records)
    passes = [each for each in map(comparable_passes, records) if each is not None]
    provenance = records[0].provenance
    n = provenance.get("threads")
    threads = f", {n} thread{'' if n == 1 else 's'}" if provenance.get("device") == "cpu" else ""
    return Cost(
        training_epochs=statistics.fmean(each.epochs for each in training) if trained else None,
        training_seconds=statistics.fmean(each.seconds for each in training) if trained else None,
        training_passes=statistics.fmean(passes) if len(passes) == len(records) else None,
        computes_bounds=trained and any(map(computes_bounds, records)),
        evaluation_passes=statistics.fmean(_passes(record) for record in records),
        networks=records[0].networks,
        hardware=f"{provenance.get('hardware')}{threads}",
    )


def _passes(record: Record) -> int:
    stages = () if record.bracket is None else record.bracket.stages.values()
    return sum(each.forwards + each.backwards for each in (*record.attacks.values(), *stages))


def _seed(run: EvaluatedRun) -> Seed:
    record, weights = run.record, run.record.artifacts["weights"]
    keys = ("finished", "git_commit", "hardware", "device", "threads", "platform")
    provenance = {key: record.provenance.get(key) for key in keys}
    versions = record.provenance.get("versions")
    provenance |= versions if isinstance(versions, dict) else {}
    provenance["source"] = record.provenance.get("source", "unknown")  # the hash of the code that made it
    return Seed(
        seed=record.seed, config_hash=record.config_hash, n_examples=record.n_examples,
        clean=share(run.clean), attacked=share(run.robust), certified=share(run.certified),
        open=None if record.bracket is None else record.bracket.open,
        truncated=record.bracket is not None and record.bracket.cut_by_time,
        weights=weights.sha256, weights_url=weights.url, status=_seed_status(record),
        provenance={key: str(value) for key, value in provenance.items() if value is not None},
    )  # fmt: skip


def _command(records: Sequence[Record]) -> str | None:
    """The command of the first seed, with all seeds."""
    command = records[0].provenance.get("command")
    if not isinstance(command, str):
        return None
    return re.sub(r"--seeds \d+$", f"--seeds {','.join(str(record.seed) for record in records)}", command)


def _note(entry: Entry) -> str | None:
    notes = [entry.about.note] if entry.about.note else []
    for run in entry.runs:
        notes += [
            f"Seed {run.record.seed}: {contest.by} broke {len(contest.broken)} more examples ({contest.finished})."
            for contest in run.contests
        ]
    return " ".join(notes) or None
