"""The scheduler: which examples a stage attacks, in which batches, and what is stored."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.attack_specs import PlannedAttack
from bench.core.contracts import Attack
from bench.core.files import read_arrays, write_arrays
from bench.core.staged_attack import Stage, StagedAttack, was_effective
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.attacked import measure_attack
from bench.evaluate.cascade import run_cascade
from bench.evaluate.context import EvalContext
from bench.evaluate.partial_results import PartialResults

THREAT = ThreatModel("Linf", 0.5)


class Threshold(nn.Module):
    """Two classes of one pixel: 0 below 0.8, with a margin that shrinks towards it."""

    def forward(self, x):
        logit = x.flatten(1) - 0.8
        return torch.cat([-logit, logit], dim=1)


@dataclass(frozen=True, kw_only=True)
class Raise(Attack):
    """Adds a constant to each pixel."""

    by: float

    def perturb(self, model, batch, threat, *, generator):
        attacked.append(batch.index.tolist())
        return batch.x + self.by


attacked: list[list[int]] = []


@pytest.fixture(autouse=True)
def _forget():
    attacked.clear()


@pytest.fixture
def split():
    """Ten examples of class 0 at 0.00, 0.05 ... 0.45; the third is labelled wrong."""
    y = torch.zeros(10, dtype=torch.int64)
    y[2] = 1
    return Split.of_tensors(torch.arange(10).reshape(10, 1, 1, 1) / 20, y)


def context(split, batch_size=4, **options):
    return EvalContext(model=Threshold(), test=split, threat=THREAT, batch_size=batch_size, seed=0, **options)


def run(split, stages, **options):
    return list(run_cascade(context(split, **options), stages, name="x", examples=np.arange(10) != 2))


def test_a_stage_attacks_what_the_earlier_ones_left_open_in_full_batches(split):
    stages = [Stage("low", Raise(by=0.42)), Stage("high", Raise(by=0.48))]
    done = run(split, stages)
    # 0.8 is passed from 0.40 on, then from 0.35 on
    assert attacked == [[0, 1, 3, 4], [5, 6, 7, 8], [9], [0, 1, 3, 4], [5, 6, 7]]
    assert [result.index[result.broken].tolist() for _, result in done] == [[], [8], [9], [], [7]]


def test_a_share_takes_those_with_the_smallest_margin(split):
    stages = [Stage("all", Raise(by=0.1)), Stage("near", Raise(by=0.2), share=0.3)]
    run(split, stages)
    assert attacked[3:] == [[7, 8, 9]]  # three of nine


@pytest.mark.parametrize(("by", "runs"), [(0.48, True), (0.42, False)])  # three hits, two hits
def test_a_conditional_stage_runs_only_where_the_other_paid(by, runs, split):
    stages = [Stage("first", Raise(by=by)), Stage("second", Raise(by=0.0), when="first")]
    done = run(split, stages)
    assert ("second" in [stage.name for stage, _ in done]) == runs


def test_lucky_hits_do_not_pay():
    assert [was_effective(hits, 20) for hits in (0, 2, 3)] == [False, False, True]
    assert [was_effective(hits, 1000) for hits in (3, 20, 21)] == [False, False, True]


def test_a_stored_batch_is_not_computed_again(split, tmp_path):
    stages = [Stage("low", Raise(by=0.42)), Stage("high", Raise(by=0.48))]
    whole = run(split, stages, partial_results=PartialResults(tmp_path, "it"))
    attacked.clear()
    sorted(tmp_path.iterdir())[0].unlink()
    again = run(split, stages, partial_results=PartialResults(tmp_path, "it"))
    assert len(attacked) == 1
    for (_, a), (_, b) in zip(whole, again, strict=True):
        assert type(a) is type(b)
        assert all(np.array_equal(value, vars(b)[name]) for name, value in vars(a).items() if name != "seconds")


def test_a_stored_batch_of_other_examples_is_ignored(split, tmp_path):
    run(split, [Stage("low", Raise(by=0.42))], partial_results=PartialResults(tmp_path, "it"), batch_size=4)
    attacked.clear()
    run(split, [Stage("low", Raise(by=0.42))], partial_results=PartialResults(tmp_path, "it"), batch_size=5)
    assert len(attacked) == 2


@dataclass(frozen=True, kw_only=True)
class TwoSteps(StagedAttack):
    """Low, then high."""

    def stages(self, threat, classes):
        assert classes == 2
        return [Stage("low", Raise(by=0.42)), Stage("high", Raise(by=0.48))]

    def perturb(self, model, batch, threat, *, generator):
        raise AssertionError("the scheduler runs the stages itself")


def test_a_staged_attack_reports_which_stage_broke_which_example_at_what_cost(split):
    found = measure_attack(context(split), "two", PlannedAttack(TwoSteps(), THREAT), np.arange(10) != 2)
    assert found.columns["robust/two"].tolist() == [i not in (2, 7, 8, 9) for i in range(10)]
    assert found.columns["decided_by/two"].tolist() == [""] * 7 + ["high", "low", "low"]
    assert found.columns["passes/two"].tolist() == [2, 2, 0, 2, 2, 2, 2, 2, 1, 1]
    assert {name: (s.attacked, s.broken, s.forwards) for name, s in found.result.stages.items()} == {
        "low": (9, 2, 9), "high": (7, 1, 7),
    }  # fmt: skip
    assert found.broken.tolist() == [8, 9, 7]


def test_nothing_to_attack(split):
    found = measure_attack(context(split), "two", PlannedAttack(TwoSteps(), THREAT), np.zeros(10, bool))
    assert found.result.robust_acc == 0
    assert found.result.forwards == 0
    assert len(found.broken) == 0


@pytest.mark.parametrize("damage", ["missing field", "other field", "no zip file"])
def test_a_stored_file_that_does_not_fit_is_ignored(damage, split, tmp_path):
    stages = [Stage("low", Raise(by=0.42))]
    whole = run(split, stages, batch_size=9, partial_results=PartialResults(tmp_path, "it"))
    (path,) = tmp_path.iterdir()
    arrays = read_arrays(path)
    if damage == "missing field":
        del arrays["margin"]
    write_arrays(path, arrays | ({"radius": arrays["margin"]} if damage == "other field" else {}))
    if damage == "no zip file":
        path.write_bytes(b"PK")
    attacked.clear()
    again = run(split, stages, batch_size=9, partial_results=PartialResults(tmp_path, "it"))
    assert len(attacked) == 1
    assert np.array_equal(again[0][1].broken, whole[0][1].broken)
    attacked.clear()
    run(split, stages, batch_size=9, partial_results=PartialResults(tmp_path, "it"))
    assert attacked == []


def test_progress_counts_each_example_once_over_all_stages_that_run_or_not(split):
    """A bar of a staged attack ends at its total, though later stages take fewer examples, or none."""
    stages = [
        Stage("low", Raise(by=0.4)), Stage("never", Raise(by=0.5), when="nothing"), Stage("some", Raise(by=0.45), 0.5),
        Stage("all", Raise(by=0.5)), Stage("rest", Raise(by=0.5)),
    ]  # fmt: skip
    counts = []
    list(
        run_cascade(
            context(split), stages, name="staged", examples=np.ones(10, np.bool_),
            report=lambda examples, stage: counts.append((examples, stage)),
        )
    )  # fmt: skip
    assert sum(examples for examples, _ in counts) == pytest.approx(10)
    assert [stage for _, stage in counts][:3] == ["low"] * 3
