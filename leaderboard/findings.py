"""docs/findings.md: tests claims of papers on the published boards, from leaderboard/results.

python -m leaderboard.findings           # write it
python -m leaderboard.findings --check   # exit 1 if it is out of date
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from leaderboard.entry_results import share
from leaderboard.published_results import Entry, published_suites, read_entries, results_folder
from leaderboard.ranks import ALPHA, Ranks, rank
from leaderboard.render import render
from leaderboard.significance import benjamini_hochberg, seeds_difference, seeds_needed
from leaderboard.training_passes import comparable_passes

Metric = Literal["clean", "attacked", "certified"]
HEAD = """# Findings

Written by `python -m leaderboard.findings` from the published results; no number is entered by hand. Accuracies are in
percent, of the recipes of each board, with its network, data and budget of training: a claim that does not hold here
may hold on a larger network. Differences are means over seeds with 95 % intervals (Welch's t-test with the degrees of
freedom of the recipe with fewer seeds); at most 5 % of the verdicts of a table are expected to be false
(Benjamini-Hochberg). They cover other seeds, not other test examples. `seeds`: the seeds of each recipe that a single
test at the 5 % level needs to detect the observed difference with a power of 80 %. The thesis is Chen Liu, *Towards
Verifiable, Generalizable and Efficient Robust Deep Neural Networks*, EPFL, 2022; the reflected-loss paper is
*Robustness Guarantees for Adversarially Trained Neural Networks*."""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper: `better` exceeds `worse` in a metric."""

    better: str
    worse: str
    metric: Metric
    source: str


CLAIMS = (
    Claim("atas", "atta", "attacked", "thesis, Table 5.11"),
    Claim("atas", "fgsm-rs", "attacked", "thesis, Table 5.11"),
    Claim("atas", "free", "attacked", "thesis, Table 5.11"),
    Claim("atas", "yopo", "attacked", "thesis, Table 5.11"),
    Claim("atas", "gradalign", "attacked", "thesis, Table 5.11"),
    Claim("pgd-at", "atas", "attacked", "thesis, Table 5.11"),
    Claim("r-pgd", "pgd-at", "attacked", "reflected-loss paper"),
    Claim("trades", "pgd-at", "attacked", "Zhang et al., 2019"),
    Claim("mart", "pgd-at", "attacked", "Wang et al., 2020"),
    Claim("sat", "trades", "attacked", "Huang et al., 2020"),
    Claim("iat", "pgd-at", "clean", "Balaji et al., 2019"),
    Claim("gairat", "pgd-at", "attacked", "Zhang et al., 2021"),
    Claim("pgd-at-wa", "pgd-at", "attacked", "Rebuffi et al., 2021"),
    Claim("fgsm-rs", "fgsm-at", "attacked", "Wong et al., 2020"),
    Claim("gradalign", "fgsm-rs", "attacked", "Andriushchenko and Flammarion, 2020"),
    Claim("n-fgsm", "fgsm-rs", "attacked", "de Jorge et al., 2022"),
    Claim("nuat", "fgsm-rs", "attacked", "Sriramanan et al., 2021"),
    Claim("fgsm-pgi", "fgsm-rs", "attacked", "Jia et al., 2022"),
    Claim("backward-smoothing", "fgsm-rs", "attacked", "Chen et al., 2022"),
    Claim("atta-rw", "atta", "attacked", "thesis, section 4.3.5"),
    Claim("atta-at", "atta", "attacked", "thesis, section 4.3.5"),
    Claim("binary-subnet", "rst", "attacked", "thesis, Table 5.7"),
    Claim("binary-subnet", "hydra", "attacked", "thesis, Table 5.7"),
    Claim("binary-subnet", "atmc", "attacked", "thesis, Table 5.7"),
    Claim("binary-subnet", "binary-subnet-fast", "attacked", "thesis, Table 5.8"),
    Claim("flyingbird-plus", "flyingbird", "attacked", "Chen et al., 2022"),
    Claim("i-per", "ibp", "certified", "thesis, Table 3.6"),
    Claim("l-per", "kw", "clean", "thesis, Table 3.6"),
    Claim("l-per", "kw", "certified", "thesis, Table 3.6"),
    Claim("l-per", "mmr", "certified", "thesis, Table 3.6"),
    Claim("mmr-at", "mmr", "attacked", "thesis, Table 3.6"),
    Claim("crown-ibp", "ibp", "certified", "Zhang et al., 2020"),
    Claim("sabr", "ibp", "clean", "Mueller et al., 2023"),
    Claim("sabr", "ibp", "certified", "Mueller et al., 2023"),
    Claim("mtl-ibp", "ibp", "certified", "De Palma et al., 2024"),
    Claim("cc-ibp", "ibp", "certified", "De Palma et al., 2024"),
    Claim("exp-ibp", "ibp", "certified", "De Palma et al., 2024"),
    Claim("taps", "ibp", "certified", "Mao et al., 2023"),
)


def accuracies(entry: Entry, metric: Metric) -> list[float]:
    """The accuracy of each seed."""
    column = {"clean": "clean", "attacked": "robust", "certified": "certified"}[metric]
    return [share(getattr(run, column)) for run in entry.runs]


def passes(entry: Entry) -> float | None:
    """Forward and backward passes of single examples that the training takes, mean over seeds.

    None if the training computes bounds, which are not counted as passes.
    """
    counts = [comparable_passes(run.record) for run in entry.runs]
    known = [count for count in counts if count is not None]
    return statistics.fmean(known) if len(known) == len(counts) else None


def claims_table(entries: Mapping[str, Entry], claims: Sequence[Claim] = CLAIMS) -> str:
    """The claims whose recipes both have several seeds, each with its difference and its verdict."""
    tested = [
        claim
        for claim in claims
        if all(name in entries and len(entries[name].runs) > 1 for name in (claim.better, claim.worse))
    ]
    if not tested:
        return "No claim can be tested: it takes two recipes with at least two seeds."
    tests = []
    for claim in tested:
        a, b = (accuracies(entries[name], claim.metric) for name in (claim.better, claim.worse))
        grain = 1 / len(entries[claim.better].runs[0].clean)
        tests.append((seeds_difference(a, b, grain), seeds_needed(a, b, grain)))
    adjusted = benjamini_hochberg([np.nan if test.p is None else test.p for test, _ in tests])
    rows = []
    for claim, (test, needed), p in zip(tested, tests, adjusted, strict=True):
        assert test.low is not None
        assert test.high is not None
        difference = f"{100 * test.difference:+.1f} [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"
        told = p <= ALPHA
        verdict = ("holds" if test.difference > 0 else "the opposite holds") if told else "not significant"
        seeds = "" if told else "more than 1,000" if needed is None or needed > 1000 else needed
        rows.append([claim.better, claim.worse, claim.metric, claim.source, difference, f"{p:.2g}", verdict, seeds])
    head = [
        "claimed better",
        "claimed worse",
        "accuracy",
        "source",
        "difference, points",
        "adjusted p",
        "result",
        "seeds",
    ]
    return render(head, rows, "markdown", "llllrrlr")


def front_table(entries: Sequence[Entry], ranks: Ranks) -> str:
    """The recipes that no other recipe with at most as many passes significantly exceeds, sorted by passes.

    Recipes that compute bounds are left out, because their passes do not measure their work.
    """
    rows = []
    counts = {i: passes(entry) for i, entry in enumerate(entries) if ranks.ranked[i] and entry.recipe}
    work = {i: count for i, count in counts.items() if count is not None}
    for i, count in sorted(work.items(), key=lambda item: item[1]):
        cheaper = [j for j, other in work.items() if j != i and other <= count]
        if not any(ranks.better[j, i] for j in cheaper):
            attacked = accuracies(entries[i], "attacked")
            rows.append([entries[i].name, f"{count:,.0f}", f"{100 * statistics.fmean(attacked):.1f}"])
    return render(["recipe", "training passes", "attacked %"], rows, "markdown", "lrr")


def bracket_table(entries: Sequence[Entry]) -> str:
    """The share of examples that are neither certified nor broken, for seed 0 of each entry, the lowest first."""
    rows = []
    for entry in entries:
        run = next((run for run in entry.runs if run.record.seed == 0), None)
        if run is not None and run.attacked:
            ends = share(run.certified), share(run.robust)
            rows.append((ends[1] - ends[0], entry.name, ends, int((run.robust & ~run.certified).sum())))
    exact = sum(open_examples == 0 for *_, open_examples in rows)
    narrow = sum(width <= 0.02 for width, *_ in rows)
    table = render(
        ["entry, seed 0", "certified %", "attacked %", "open examples"],
        [[name, f"{100 * low:.1f}", f"{100 * high:.1f}", count] for _, name, (low, high), count in sorted(rows)],
        "markdown", "lrrr",
    )  # fmt: skip
    known = f"The true robust accuracy of seed 0 is known exactly for {exact} of {len(rows)} entries, and to 2 points"
    return f"{known} for {narrow}.\n\n{table}"


def separable(ranks: Ranks) -> str:
    pairs = list(combinations(np.flatnonzero(ranks.ranked), 2))
    told = sum(bool(ranks.better[i, j] or ranks.better[j, i]) for i, j in pairs)
    return f"{told} of the {len(pairs)} pairs of ranked entries can be told apart by their accuracy under attack."


def findings(results: Path) -> str:
    return "\n\n".join([HEAD, *(part for suite in published_suites(results) for part in _of_suite(results, suite))])


def _of_suite(results: Path, suite: str) -> Iterator[str]:
    entries = [entry for entry in read_entries(results, suite)[0] if entry.recipe and entry.measured]
    if not entries:
        return
    ranks = rank(entries)
    seeds = sorted({len(entry.runs) for entry in entries})
    yield f"## {suite}"
    yield f"{len(entries)} recipes, {' to '.join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))} seeds each. " + (
        separable(ranks)
    )
    yield "### Claims of papers"
    yield claims_table({entry.name: entry for entry in entries})
    yield "### Accuracy against training passes"
    front = (
        "These recipes are on the Pareto front: no recipe with at most as many passes is significantly more accurate."
    )
    if bounds := [entry.name for i, entry in enumerate(entries) if ranks.ranked[i] and passes(entry) is None]:
        front += f" Left out are trainings that compute bounds, which are not counted as passes: {', '.join(bounds)}."
    yield front
    yield front_table(entries, ranks)
    yield "### How well the true robust accuracy is known"
    yield bracket_table(entries)


def main(arguments: Sequence[str]) -> int:
    path = Path(str(files("leaderboard"))).parent / "docs" / "findings.md"
    text = f"{findings(results_folder())}\n"
    if "--check" not in arguments:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path} is out of date; run `python -m leaderboard.findings`")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
