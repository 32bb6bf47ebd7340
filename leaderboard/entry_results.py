"""What a board shows about an entry's seeds besides their accuracies: attack columns, certificates, curves.

An attack column is shown if its attack is one of the suite's own. For a run with a checked.json, the attack must also
have run again, and examples that it then broke do not count. leaderboard/verification_files.py defines which
certificates count.
"""

import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from bench.core.config import suites
from bench.core.example_table import Flags, Threat, threat_of
from bench.core.records import AttackResult, CertifierResult
from bench.core.spec_text import join_spec, split_spec
from leaderboard.board_data import Certificates, Curve, PassesCurve
from leaderboard.published_results import EvaluatedRun

Runs = Sequence[EvaluatedRun]  # the seeds of an entry
Results = dict[str, tuple[AttackResult, Flags]] | dict[str, tuple[CertifierResult, Flags]]
TOLERANCE = 1e-6  # relative: distances are stored as float32
POINTS = 41  # points of a curve that is drawn from distances


def attacks_of(run: EvaluatedRun) -> dict[str, tuple[AttackResult, Flags]]:
    """The attacks of a run that a board shows: the suite's own; in a checked run, only those that ran again."""
    suite = suites().get(str(run.record.suite))
    own = {*suite.attacks, *suite.board_attacks} if suite else set(run.columns)
    return {
        spec: (run.record.attacks[spec], flags) for spec, flags in run.columns.items() if split_spec(spec).name in own
    }


def certifiers_of(run: EvaluatedRun) -> dict[str, tuple[CertifierResult, Flags]]:
    """The certifiers of the model itself, with the certificates that count."""
    return {spec: (run.record.certifiers[spec], flags) for spec, flags in run.certifiers.items()}


def certificates_of(runs: Runs) -> Certificates | None:
    """How the certificates of the seeds were checked."""
    counts = []
    for run in runs:
        checked, claimed = run.checked, int(np.count_nonzero(run.certified if run.claimed is None else run.claimed))
        if checked is None:
            counts.append((0, 0, 0, 0, claimed))
        else:
            kinds = len(checked.proven), len(checked.again), len(checked.solver)
            counts.append((*kinds, claimed - sum(kinds), 0))
    proven, again, solver, left, unchecked = map(statistics.fmean, zip(*counts, strict=True))
    found = Certificates(proven=proven, again=again, solver=solver, open=left, unchecked=unchecked)
    return found if any(map(sum, counts)) else None


def curves(runs: Runs) -> Iterable[Curve]:
    """Accuracy against eps, for attacks that ran at several eps, and from the distances of minimum-norm attacks."""
    families: dict[tuple[str, str], dict[float, list[float]]] = {}
    for run in runs:
        for spec, (_, flags) in attacks_of(run).items():
            threat, (name, options) = threat_of(spec, run.record.threat), split_spec(spec)
            options.pop("eps", None)
            points = families.setdefault((threat.norm, join_spec(name, options)), {})
            points.setdefault(threat.eps, []).append(share(flags))
    for (norm, label), points in families.items():
        if len(points) > 1:
            points[0.0] = [share(run.clean) for run in runs]
            eps = tuple(sorted(points))
            yield Curve(norm=norm, label=label, eps=eps, acc=tuple(statistics.fmean(points[e]) for e in eps))
    for spec in dict.fromkeys(spec for run in runs for spec in run.distances if _ran_again(run, spec)):
        threat = threat_of(spec, runs[0].record.threat)
        yield _distance_curve(spec, threat, [run for run in runs if spec in run.distances])


def _ran_again(run: EvaluatedRun, spec: str) -> bool:
    """Whether an attack is one of the suite's own, or ran again."""
    return spec in attacks_of(run) or (run.checked is not None and spec in run.columns)


def _distance_curve(spec: str, threat: Threat, runs: Runs) -> Curve:
    grid = np.linspace(0, 2 * threat.eps, POINTS)
    distances = [(run.distances[spec][run.clean], len(run.clean)) for run in runs]
    acc = tuple(statistics.fmean((d > eps).sum() / n for d, n in distances) for eps in grid * (1 + TOLERANCE))
    return Curve(norm=threat.norm, label=spec, eps=tuple(map(float, grid)), acc=acc)


def passes_curves(runs: Runs) -> Iterable[PassesCurve]:
    """Accuracy against passes, for each attack that every seed ran; means over the seeds."""
    for spec in attacks_of(runs[0]):
        if not all(spec in attacks_of(run) and spec in run.passes for run in runs):
            continue
        most = max(int(run.passes[spec].max(initial=1)) for run in runs)
        grid = np.unique(np.geomspace(1, max(2, most), POINTS).round().astype(np.int64))
        acc = np.mean([_left_after(grid, run, spec) for run in runs], axis=0)
        yield PassesCurve(label=spec, passes=tuple(grid.tolist()), acc=tuple(acc.tolist()))


def _left_after(passes: npt.NDArray[np.int64], run: EvaluatedRun, spec: str) -> npt.NDArray[np.float64]:
    """The share of the examples that an attack has not broken after each number of passes per example."""
    broken = np.sort(run.passes[spec][run.clean & ~run.columns[spec]])
    left = np.count_nonzero(run.clean) - np.searchsorted(broken, passes, side="right")
    return np.asarray(left / len(run.clean))


def share(flags: Flags) -> float:
    return int(np.count_nonzero(flags)) / len(flags)
