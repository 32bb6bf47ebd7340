"""A machine-made verdict on an evaluation: signs that its attacks were misled rather than withstood."""

from __future__ import annotations

import torch
from torch import nn

from bench.core import seeds
from bench.core.example_table import Table
from bench.core.records import Sanity, SanityCheck
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.sanity.checks import OF_THE_ATTACKS, OF_THE_MODEL, OF_THE_TABLE, RANK, Finding, skipped, worst
from bench.sanity.probe import Probe


def judge(model: nn.Module, test: Split, threat: ThreatModel, table: Table, *, seed: int, batch_size: int) -> Sanity:
    """The verdict on a finished evaluation: its worst check's outcome, with each check's figures.

    test: the split that the table's rows are of. threat: the record's, with one eps for all.

    Three checks look at the model's answers to the first examples; seven at what small attacks do to the first
    examples that the record counts as robust, for only there can it promise too much; four at the table's columns.
    A check counts the examples that show its sign, and alarms where they are more than a tolerated share gives by
    chance. `unreliable` means that the figures cannot be trusted: they are of no fixed classifier (a stochastic model
    that no attack averaged; predictions that depend on the batch), or the attacks had nothing to follow (the margin
    has no gradient), or, after any sign, a few steps with a remedy for it break more of the examples that count as
    robust than the tolerated share. `suspect` is a sign without such proof. Where a check could not tell, it is
    `skipped`: a model of which nothing stands cannot promise too much.

    False alarms: none of any check in 20 sound runs (8 published checkpoints, looked at while thresholds were chosen,
    and 12 models trained after that), which bounds the rate of each by 0.14 at 95 % confidence.
    Cost: at most 64 examples, some 200 times forwards and 70 backwards each; with an alarm up to 1500 and 260 times.
    The global random numbers, which a stochastic model draws from, are seeded here, and left as they were.
    """
    probe = Probe(model, test, threat, table, seed, batch_size)
    found: dict[str, Finding] = {}
    with torch.random.fork_rng([test.y.device] if test.y.device.type == "cuda" else []):
        torch.manual_seed(seeds.derive(seed, "sanity"))
        for name, check in (OF_THE_MODEL | OF_THE_ATTACKS | OF_THE_TABLE).items():
            idle = name in OF_THE_ATTACKS and len(probe.standing) == 0
            found[name] = skipped("the record counts no example as robust") if idle else check(probe)
    checks = [SanityCheck(name, *finding) for name, finding in found.items()]
    alarms = [check for check in checks if RANK[check.outcome] >= RANK["suspect"]]
    verdict = worst(found.values()).outcome if alarms else "clean"
    return Sanity(verdict, [f"{check.name}: {check.evidence}" for check in alarms], checks)
