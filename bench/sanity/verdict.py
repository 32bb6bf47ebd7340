"""Forms the verdict on an evaluation from signs that its attacks were misled although the model is not robust."""

import msgspec
import torch
from torch import nn

from bench.core import seeds
from bench.core.example_table import Table, attacked
from bench.core.record_verdict import Results, result_checks, with_result_alarms
from bench.core.records import Sanity, SanityCheck
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.sanity.checks import ATTACK_CHECKS, MODEL_CHECKS, RANK, TABLE_CHECKS, CheckResult, skipped, worst
from bench.sanity.model_under_test import ModelUnderTest

NO_NORM = "the threat model has no norm"


def form_verdict(
    model: nn.Module,
    test: Split,
    threat: ThreatModel | None,
    table: Table,
    *,
    seed: int,
    batch_size: int,
    results: Results | None = None,
) -> Sanity:
    """The verdict on a finished evaluation: the worst outcome of its checks, with the figures of each check.

    test: the split of the table's rows. threat: the record's, with one eps for all examples; None if it has no norm, as
    for corruptions, where no check attacks. results: of the attacks
    and certifiers by spec, and of the `bracket`; None leaves out the checks that use them (bench.core.record_verdict).

    Four checks use the model's answers to the first examples; seven use short attacks on the first examples that the
    record counts as robust; four use the columns of the table; two use the results. A check counts the examples that
    show its sign, and alarms if they are more than a tolerated share gives by chance. `unreliable` means that the
    figures cannot be trusted: the classifier is not fixed (a stochastic model that no attack averaged; predictions that
    depend on the batch), or the attacks had no gradient to follow, or, after any sign, a few steps with a remedy for it
    break more of the examples counted as robust than the tolerated share. `suspect` is a sign without such proof;
    `skipped` a check that could not decide. Without an alarm the verdict is `not-attacked` if nothing attacked under
    `threat`, and `no-warnings` otherwise (the keys of bench.core.records.VERDICTS).

    A warning of an attack is an alarm, because it is printed beside the verdict. AutoAttack gives one in 5 of the 42
    published digits runs: its Square attack broke one or two examples that its other attacks had left.
    False alarms of the other checks: none in 20 sound runs (8 published checkpoints, used to choose the thresholds, and
    12 models trained after that), which bounds the rate of each by 0.14 at 95 % confidence.
    Cost: at most 64 examples, some 200 forward and 70 backward passes each; with an alarm up to 1500 and 260.
    The global random generator, from which a stochastic model draws, is seeded here and restored afterwards.
    """
    tested = ModelUnderTest(model, test, threat, table, seed, batch_size)
    by_name: dict[str, CheckResult] = {}
    with torch.random.fork_rng([test.y.device] if test.y.device.type == "cuda" else []):
        torch.manual_seed(seeds.derive(seed, "sanity"))
        for name, check in MODEL_CHECKS.items():
            by_name[name] = check(tested)
        reason = "the record counts no example as robust" if len(tested.robust) == 0 else None
        if by_name["one-class"].outcome == "suspect":
            reason = "the model predicts one class for all examples"  # so all of these checks would alarm
        if threat is None:
            reason = NO_NORM
        for name, check in ATTACK_CHECKS.items():
            by_name[name] = check(tested) if reason is None else skipped(reason)
        for name, check in TABLE_CHECKS.items():
            by_name[name] = check(tested) if threat is not None else skipped(NO_NORM)
    checks = [SanityCheck(name, *result) for name, result in by_name.items()]
    alarms = [check for check in checks if RANK[check.outcome] >= RANK["suspect"]]
    quiet = "no-warnings" if attacked(table) else "not-attacked"
    verdict = worst(by_name.values()).outcome if alarms else quiet
    sanity = Sanity(verdict, [f"{check.name}: {check.evidence}" for check in alarms], checks)
    if results is None:
        return sanity
    quiet_checks = [check for check in result_checks(results) if RANK[check.outcome] < RANK["suspect"]]
    return with_result_alarms(msgspec.structs.replace(sanity, checks=[*checks, *quiet_checks]), results)
