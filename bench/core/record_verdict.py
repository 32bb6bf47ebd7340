"""Updates a verdict by the results of an evaluation and the findings of its verification. Imports no torch.

These checks need no model, so they also apply to records that are older than the checks.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec
import numpy as np

from bench.core.example_table import BRACKET
from bench.core.records import VERDICTS, AttackResult, Bracket, CertifierResult, Record, Sanity, SanityCheck
from bench.core.spec_text import split_spec, split_steps

SIGNIFICANCE = 1e-3  # per check: a dozen checks flag about one sound record in a hundred at the tolerated share
TOLERATED = 0.05  # share of examples that may show a sign; 50 sound models: 0.03, and 0.09 for queries-better
NEGLIGIBLE = 0.01  # share of examples by which a weaker attack may win; random starts gave 0.015 of 200 examples
ONE_STEP = ("fgsm", "r-fgsm", "single-step")
SERIOUS = ("suspect", "unreliable")  # outcomes of a check that are alarms
ALARMS = {"failed": "unreliable", "weaker": "suspect"}  # outcomes of a verification -> outcome of a check

Results = Mapping[str, AttackResult | CertifierResult | Bracket]  # by spec, and `bracket`


class Finding(Protocol):
    """One finding of a verification."""

    @property
    def name(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def evidence(self) -> str: ...


def by_chance(n: int, rate: float = TOLERATED) -> int:
    """Bound on how many of n examples show a sign of this rate, exceeded with probability at most SIGNIFICANCE."""
    from scipy.special import betainc  # here, because the import takes a tenth of a second

    more = np.arange(1, n + 1)
    return int((betainc(more, n - more + 1.0, rate) > SIGNIFICANCE).sum())  # P(at least `more` of n)


def result_checks(results: Results) -> list[SanityCheck]:
    """Check the results for warnings of attacks, and for a bracket that broke what the attacks had left."""
    return [_attack_warnings(results), _bracket_better(results)]


def with_result_alarms(sanity: Sanity, results: Results) -> Sanity:
    """Add the alarms of result_checks that the verdict does not have yet; `not-attacked` if nothing attacked."""
    if sanity.verdict == "no-warnings" and not _was_attacked(results):
        sanity = msgspec.structs.replace(sanity, verdict="not-attacked")
    known = {check.name for check in sanity.checks}
    return _with_alarms(sanity, (check for check in result_checks(results) if check.name not in known))


def results_of(record: Record) -> Results:
    bracket = {} if record.bracket is None else {BRACKET: record.bracket}
    return {**record.attacks, **record.certifiers, **bracket}


def with_updated_verdict(record: Record) -> Record:
    """Return the record with its verdict updated by all of its results."""
    return msgspec.structs.replace(record, sanity=with_result_alarms(record.sanity, results_of(record)))


def with_findings(record: Record, findings: Iterable[Finding]) -> Record:
    """Return the record with its verdict updated by the findings of a verification."""
    checks = (
        SanityCheck(f"verify {f.name}", ALARMS.get(f.outcome, "passed"), None, None, f.evidence) for f in findings
    )
    return msgspec.structs.replace(record, sanity=_with_alarms(record.sanity, checks))


def with_code(record: Record) -> Record:
    """Return a published record whose verdict says whether it depends on code files of its submitter.

    Such code can tell attacks from test images, or return wrong gradients, and no check of an evaluation excludes it.
    """
    sanity, order = record.sanity, list(VERDICTS)
    files = record.config.get("code")
    if not isinstance(files, list) or not files:
        return record
    if sanity.verdict in order:
        sanity = msgspec.structs.replace(sanity, verdict=max(sanity.verdict, "submitted-code", key=order.index))
    reason = f"code: {len(files)} files of the submitter run, which no check of the evaluation can vouch for"
    return msgspec.structs.replace(record, sanity=msgspec.structs.replace(sanity, reasons=[*sanity.reasons, reason]))


def _with_alarms(sanity: Sanity, checks: Iterable[SanityCheck]) -> Sanity:
    alarms = [check for check in checks if check.outcome in SERIOUS]
    if not alarms:
        return sanity
    order = list(VERDICTS)
    verdicts = [sanity.verdict if sanity.verdict in VERDICTS else "unreliable", *(check.outcome for check in alarms)]
    reasons = [f"{check.name}: {check.evidence}" for check in alarms]
    return Sanity(max(verdicts, key=order.index), [*sanity.reasons, *reasons], [*sanity.checks, *alarms])


def _own_attacks(results: Results) -> list[str]:
    """The attacks under the record's own threat model."""
    attacks = [spec for spec, result in results.items() if isinstance(result, AttackResult)]
    return [spec for spec in attacks if not {"norm", "eps"} & split_spec(spec).options.keys()]


def _was_attacked(results: Results) -> bool:
    """Whether anything that can break an example ran under the record's own threat model, on any example."""
    searched = any(isinstance(result, CertifierResult) and result.broken is not None for result in results.values())
    bracket = results.get(BRACKET)
    tried = isinstance(bracket, Bracket) and any(
        stage.backwards > 0 or (stage.broken > 0 and name != "clean") or name == "exact"
        for name, stage in bracket.stages.items()
    )
    decided = isinstance(bracket, Bracket) and bracket.open == 0
    return bool(_own_attacks(results)) or searched or tried or decided


def _attack_warnings(results: Results) -> SanityCheck:
    lines = [
        f"{source}: {warning}"
        for source, result in results.items()
        if not isinstance(result, CertifierResult)
        for warning in result.warnings
    ]
    text = " ".join("; ".join(lines).split())
    return SanityCheck("attack-warnings", "suspect" if lines else "passed", None, None, text or "no attack warned")


def _bracket_better(results: Results) -> SanityCheck:
    """Check whether the bracket breaks more of what the attacks left than random starts explain."""
    name, attacks, bracket = "bracket-better", _own_attacks(results), results.get(BRACKET)
    strong = [spec for spec in attacks if split_steps(split_spec(spec).name)[0] not in ONE_STEP]
    if not isinstance(bracket, Bracket) or not strong:
        return SanityCheck(name, "skipped", None, None, "there is no bracket beside an attack of several steps")
    stages = bracket.stages
    n = next(iter(stages.values())).tried - stages["clean"].broken if "clean" in stages else 0
    more = sum(stage.broken for source, stage in stages.items() if source not in results and source != "clean")
    limit = by_chance(n, NEGLIGIBLE)
    evidence = f"the bracket breaks {more} of {n} examples that {', '.join(attacks)} left"
    outcome = "suspect" if more > limit else "passed"
    return SanityCheck(name, outcome, more / max(n, 1), limit / max(n, 1), evidence)
