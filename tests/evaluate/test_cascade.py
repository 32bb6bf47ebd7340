"""The scheduler: who is attacked by which stage, in which batches, and what is remembered."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.contracts import Attack
from bench.core.staged_attack import Stage, StagedAttack, has_paid
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.attacked import measure_attack
from bench.evaluate.cascade import run_cascade

THREAT = ThreatModel("Linf", 0.5)


class Height(nn.Module):
    """Two classes of one pixel: 0 below 0.8, with a margin that shrinks on the way there."""

    def forward(self, x):
        height = x.flatten(1) - 0.8
        return torch.cat([-height, height], dim=1)


@dataclass(frozen=True, kw_only=True)
class Raise(Attack):
    """Lifts each pixel by so much."""

    by: float

    def perturb(self, model, batch, *, generator):
        seen.append(batch.index.tolist())
        return batch.x + self.by


seen: list[list[int]] = []


@pytest.fixture(autouse=True)
def _forget():
    seen.clear()


@pytest.fixture
def test_split():
    """Ten examples of class 0 at 0.00, 0.05 ... 0.45; the third is labelled wrong."""
    y = torch.zeros(10, dtype=torch.int64)
    y[2] = 1
    return Split.of_tensors(torch.arange(10).reshape(10, 1, 1, 1) / 20, y)


def run(split, stages, batch_size=4, **options):
    right = np.arange(10) != 2
    options = {"name": "x", "threat": THREAT, "right": right, "batch_size": batch_size, "seed": 0} | options
    return list(run_cascade(Height(), split, stages, **options))


def test_a_stage_attacks_what_the_earlier_ones_left_in_full_batches(test_split):
    stages = [Stage("low", Raise(threat=THREAT, by=0.42)), Stage("high", Raise(threat=THREAT, by=0.48))]
    done = run(test_split, stages)
    # 0.8 is passed from 0.40 on, then from 0.35 on
    assert seen == [[0, 1, 3, 4], [5, 6, 7, 8], [9], [0, 1, 3, 4], [5, 6, 7]]
    assert [part["index"][part["broken"]].tolist() for _, part in done] == [[], [8], [9], [], [7]]


def test_a_share_takes_those_with_the_smallest_margin(test_split):
    stages = [Stage("all", Raise(threat=THREAT, by=0.1)), Stage("near", Raise(threat=THREAT, by=0.2), share=0.3)]
    run(test_split, stages)
    assert seen[3:] == [[7, 8, 9]]  # three of nine


@pytest.mark.parametrize(("by", "runs"), [(0.48, True), (0.42, False)])  # three hits, two hits
def test_a_conditional_stage_runs_only_where_the_other_paid(by, runs, test_split):
    stages = [Stage("first", Raise(threat=THREAT, by=by)), Stage("second", Raise(threat=THREAT, by=0.0), when="first")]
    done = run(test_split, stages)
    assert ("second" in [stage.name for stage, _ in done]) == runs


def test_lucky_hits_do_not_pay():
    assert [has_paid(hits, 20) for hits in (0, 2, 3)] == [False, False, True]
    assert [has_paid(hits, 1000) for hits in (3, 20, 21)] == [False, False, True]


def test_what_is_done_is_found_again(test_split, tmp_path):
    stages = [Stage("low", Raise(threat=THREAT, by=0.42)), Stage("high", Raise(threat=THREAT, by=0.48))]
    whole = run(test_split, stages, parts=tmp_path)
    seen.clear()
    sorted(tmp_path.iterdir())[0].unlink()
    again = run(test_split, stages, parts=tmp_path)
    assert len(seen) == 1
    for (_, a), (_, b) in zip(whole, again, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a if key != "seconds")


def test_what_was_done_to_other_examples_is_not_taken(test_split, tmp_path):
    run(test_split, [Stage("low", Raise(threat=THREAT, by=0.42))], parts=tmp_path, batch_size=4)
    seen.clear()
    run(test_split, [Stage("low", Raise(threat=THREAT, by=0.42))], parts=tmp_path, batch_size=5)
    assert len(seen) == 2


@dataclass(frozen=True, kw_only=True)
class TwoSteps(StagedAttack):
    """Low, then high."""

    def stages(self, classes: int) -> Sequence[Stage]:
        assert classes == 2
        return [Stage("low", Raise(threat=self.threat, by=0.42)), Stage("high", Raise(threat=self.threat, by=0.48))]

    def perturb(self, model, batch, *, generator):
        raise AssertionError("the scheduler runs the stages itself")


def test_a_staged_attack_says_who_fell_to_what_at_what_cost(test_split):
    found = measure_attack(
        Height(), test_split, TwoSteps(threat=THREAT), "two", clean=np.arange(10) != 2, batch_size=4, seed=0
    )
    assert found.columns["robust/two"].tolist() == [i not in (2, 7, 8, 9) for i in range(10)]
    assert found.columns["decided_by/two"].tolist() == [""] * 7 + ["high", "low", "low"]
    assert found.columns["passes/two"].tolist() == [2, 2, 0, 2, 2, 2, 2, 2, 1, 1]
    assert {name: (s.attacked, s.broken, s.forwards) for name, s in found.result.stages.items()} == {
        "low": (9, 2, 9), "high": (7, 1, 7),
    }  # fmt: skip
    assert found.broken.tolist() == [8, 9, 7]


def test_nothing_to_attack(test_split):
    found = measure_attack(
        Height(), test_split, TwoSteps(threat=THREAT), "two", clean=np.zeros(10, bool), batch_size=4, seed=0
    )
    assert found.result.robust_acc == 0
    assert found.result.forwards == 0
    assert len(found.broken) == 0
