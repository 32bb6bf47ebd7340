"""Attacks a few of the certified examples."""

import numpy as np

from bench.core import registry, seeds
from bench.core.attack_specs import PlannedAttack
from bench.core.errors import CheckError
from bench.core.example_table import BRACKET, Table, certificates, certified
from bench.evaluate.attacked import measure_attack
from bench.evaluate.context import EvalContext

STRONG_ATTACK = "bracket-attack"
SHARE = 0.02


def sample_size(certified_examples: int) -> int:
    """The number of certified examples to attack: SHARE of them, and at least one."""
    return max(1, round(SHARE * certified_examples)) if certified_examples else 0


def audit_certificates(context: EvalContext, table: Table) -> int:
    """Attack a sample of the certified examples, drawn by the seed; returns how many. CheckError if one is broken."""
    certified_rows = np.flatnonzero(certified(table))
    if not len(certified_rows):
        return 0
    sample = np.zeros_like(table["clean"])
    generator = np.random.default_rng(seeds.derive(context.seed, "audit"))
    sample[generator.choice(certified_rows, sample_size(len(certified_rows)), replace=False)] = True
    attack = PlannedAttack(registry.attack.get(STRONG_ATTACK)(), context.threat)
    broken = measure_attack(context, "audit", attack, sample).broken
    if len(broken):
        example = int(broken.min())
        sources = [source for source, column in certificates(table).items() if column[example]]
        if sources == [BRACKET]:
            sources = [str(table["decided_by"][example])]
        raise CheckError(
            f"{sources[0]} certified test example {example}, but {STRONG_ATTACK} breaks it; "
            "do not trust any certificate of this certifier"
        )
    return int(sample.sum())
