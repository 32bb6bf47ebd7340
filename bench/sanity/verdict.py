"""The verdict on an evaluation: signs that its attacks were misled although the model is not robust."""

import torch
from torch import nn

from bench.core import seeds
from bench.core.example_table import Table, attack_specs
from bench.core.records import Sanity, SanityCheck
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.sanity.checks import ATTACK_CHECKS, MODEL_CHECKS, RANK, TABLE_CHECKS, CheckResult, skipped, worst
from bench.sanity.model_under_test import ModelUnderTest


def form_verdict(
    model: nn.Module, test: Split, threat: ThreatModel, table: Table, *, seed: int, batch_size: int
) -> Sanity:
    """The verdict on a finished evaluation: the worst outcome of its checks, with the figures of each check.

    test: the split of the table's rows. threat: the record's, with one eps for all examples.

    Three checks use the model's answers to the first examples; seven use short attacks on the first examples that the
    record counts as robust; four use the columns of the table. A check counts the examples that show its sign, and
    alarms if they are more than a tolerated share gives by chance. `unreliable` means that the figures cannot be
    trusted: the classifier is not fixed (a stochastic model that no attack averaged; predictions that depend on the
    batch), or the attacks had no gradient to follow, or, after any sign, a few steps with a remedy for it break more
    of the examples counted as robust than the tolerated share. `suspect` is a sign without such proof; `skipped` a
    check that could not decide. Without an alarm the verdict is `not-attacked` if neither an attack nor a bracket ran,
    and `no-warnings` otherwise (the keys of bench.core.records.VERDICTS).

    False alarms: none of any check in 20 sound runs (8 published checkpoints, used to choose the thresholds, and 12
    models trained after that), which bounds the rate of each by 0.14 at 95 % confidence.
    Cost: at most 64 examples, some 200 forward and 70 backward passes each; with an alarm up to 1500 and 260.
    The global random generator, from which a stochastic model draws, is seeded here and restored afterwards.
    """
    tested = ModelUnderTest(model, test, threat, table, seed, batch_size)
    results: dict[str, CheckResult] = {}
    with torch.random.fork_rng([test.y.device] if test.y.device.type == "cuda" else []):
        torch.manual_seed(seeds.derive(seed, "sanity"))
        for name, check in (MODEL_CHECKS | ATTACK_CHECKS | TABLE_CHECKS).items():
            nothing_robust = name in ATTACK_CHECKS and len(tested.robust) == 0
            results[name] = skipped("the record counts no example as robust") if nothing_robust else check(tested)
    checks = [SanityCheck(name, *result) for name, result in results.items()]
    alarms = [check for check in checks if RANK[check.outcome] >= RANK["suspect"]]
    quiet = "no-warnings" if attack_specs(table) or "status" in table else "not-attacked"
    verdict = worst(results.values()).outcome if alarms else quiet
    return Sanity(verdict, [f"{check.name}: {check.evidence}" for check in alarms], checks)
