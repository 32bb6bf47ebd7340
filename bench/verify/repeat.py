"""Rebuilds the attacks and certifiers of a record from its specs, and repeats them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from bench.core import registry
from bench.core.attack_specs import PlannedAttack, make_attacks
from bench.core.contracts import Attack, Certifier
from bench.core.errors import UserError
from bench.core.example_table import Table, own_specs
from bench.core.records import Record
from bench.core.spec_text import split_spec
from bench.core.threat import ThreatModel
from bench.evaluate.certificate_audit import STRONG_ATTACK
from bench.evaluate.certified import check_certifier, make_certifiers
from bench.evaluate.context import EvalContext
from bench.verify.attack_again import BrokenExamples, ColumnCheck, attack_again, column_again
from bench.verify.certify_again import SAMPLE, Recertified, certify_again
from bench.verify.inputs import Settings
from bench.verify.report import Finding
from bench.verify.trusted_code import check_trusted

METHODS = "attacks and certifiers"


@dataclass
class Repeated:
    """The results of repeating a run's attacks and certifiers.

    fell: examples that were claimed robust and that broke. columns: by spec, for each attack that ran again.
    certificates: by spec, for each certifier that ran again on the examples that it certified without a proof.
    """

    fell: BrokenExamples = field(default_factory=BrokenExamples)
    columns: dict[str, ColumnCheck] = field(default_factory=dict)
    certificates: dict[str, Recertified] = field(default_factory=dict)


def check_methods(record: Record, context: EvalContext, classes: int, settings: Settings) -> Finding:
    """Check that every attack and certifier of a record is registered, in canonical form, and fits the model.

    Specs of files that the user has not named, and of libraries that are not installed, cannot be checked.
    """
    not_here = []
    for spec in [*record.attacks, *certifying_specs(record, everything=True)]:
        try:
            problem = _problem(spec, record, context, classes, settings)
        except UserError as error:
            if not _is_foreign(spec, record):
                return Finding(METHODS, "failed", str(error))
            not_here.append(spec)
        else:
            if problem:
                return Finding(METHODS, "failed", problem)
    if not_here:
        return Finding(METHODS, "not checkable", f"code or a library that is not here: {', '.join(not_here)}")
    specs = [*record.attacks, *certifying_specs(record, everything=True)]
    evidence = f"known, and suitable for the model: {', '.join(specs)}" if specs else "the run has none"
    return Finding(METHODS, "passed", evidence)


def _problem(spec: str, record: Record, context: EvalContext, classes: int, settings: Settings) -> str:
    """Describe what is wrong with the spec of an attack or certifier, or return ""; UserError if it is not known."""
    check_trusted(spec, settings.trusted)
    shape = context.test.image_shape
    if spec in record.attacks:
        ((text, planned),) = make_attacks([spec], context.threat).items()
        if split_spec(spec).name == "transfer":  # the run that provides its examples may not be here
            planned.threat.check_eps(shape)
        else:
            planned.check_fits(shape, classes)
    else:
        ((text, certifier),) = make_certifiers([spec]).items()
        check_certifier(certifier, context.model, shape, context.threat)
        result = record.certifiers.get(spec)
        if result is not None and result.kind != certifier.kind:
            return f"{spec} is {certifier.kind}, the record says {result.kind}"
    return "" if text == spec else f"'{spec}' is written as '{text}'"


def _is_foreign(spec: str, record: Record) -> bool:
    """Whether a spec may be known on another machine: it is of code that the run used, or of another library."""
    name = spec.partition(":")[0]
    return name.endswith(".py") or "." in split_spec(spec).name or bool(record.config.get("code"))


def repeat_attack(
    context: EvalContext, table: Table, record: Record, classes: int, settings: Settings, into: Repeated
) -> Finding:
    """Run the attack of the settings on the examples that are claimed robust."""
    (planned,) = make_attacks([settings.attack], context.threat).values()
    planned.attack.check_fits(context.threat, context.test.image_shape, classes)
    own = {spec: attack for spec in _own_attacks(record, table) for attack in _repeatable(spec, context, settings)}
    finding, fell = attack_again(context, table, {settings.attack: planned.attack}, own, settings.sample)
    into.fell = into.fell | fell
    by = "" if finding.outcome == "weaker" else f"{settings.attack}, "  # its evidence names the attack
    return replace(finding, evidence=f"{by}seed {settings.seed}: {finding.evidence}")


def repeat_column(
    context: EvalContext, table: Table, spec: str, record: Record, settings: Settings, into: Repeated
) -> Finding:
    """Run an attack of the record again, with the record's seed."""
    planned = _planned(spec, context.threat, settings)
    finding, fell, column = column_again(context, table, spec, planned, record.seed)
    into.fell, into.columns[spec] = into.fell | fell, column
    return finding


def repeat_certifier(
    context: EvalContext, table: Table, spec: str, settings: Settings, proven: frozenset[int], into: Repeated
) -> Finding:
    """Repeat the certification of examples without a proof. UserError if the certificates are probabilistic."""
    check_trusted(spec, settings.trusted)
    (certifier,) = make_certifiers([spec]).values()
    if certifier.kind == "probabilistic":
        raise UserError("its certificates depend on random draws, so another draw may give none")
    sample = None if settings.every_certificate else SAMPLE
    finding, into.certificates[spec] = certify_again(context, table, spec, certifier, sample=sample, proven=proven)
    return finding


def certifying_specs(record: Record, *, everything: bool = False) -> list[str]:
    """The specs of the certifiers that certified an example, by the record. everything: of all its certifiers."""
    specs = [spec for spec, result in record.certifiers.items() if everything or result.mean_radius > 0]
    stages = {} if record.bracket is None else record.bracket.stages
    tried = [name for name, stage in stages.items() if stage.certified or (everything and name in registry.certifier)]
    return list(dict.fromkeys([*specs, *tried]))


def certifiers_of(record: Record, settings: Settings) -> Iterator[Certifier]:
    """Build all certifiers that took part; UserError if one needs code that the user has not named."""
    specs = certifying_specs(record, everything=True)
    for spec in specs:
        check_trusted(spec, settings.trusted)
    yield from make_certifiers(specs).values()


def _planned(spec: str, threat: ThreatModel, settings: Settings) -> PlannedAttack:
    check_trusted(spec, settings.trusted)
    (planned,) = make_attacks([spec], threat).values()
    return planned


def _own_attacks(record: Record, table: Table) -> list[str]:
    """The specs of the attacks that the record's accuracy is based on; the bracket's only if its time was not spent."""
    finished = record.bracket and not record.bracket.out_of_time
    return [*own_specs(table), *([STRONG_ATTACK] if finished else [])]


def _repeatable(spec: str, context: EvalContext, settings: Settings) -> list[Attack]:
    """Build the attack; empty if it needs code that the user has not named, or a file that is missing."""
    try:
        return [_planned(spec, context.threat, settings).attack]
    except UserError:
        return []
