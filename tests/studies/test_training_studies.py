"""The studies that train networks: their measures on known inputs, and each of them once, at a tiny size."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bench.core.threat import ThreatModel
from bench.studies.adversarial_training import (
    connectivity,
    difficulty,
    gradients,
    hessian,
    instance_weights,
    lipschitz_bounds,
    subsets,
)
from bench.studies.adversarial_training.adversarial_runs import attacked, class_balanced, measure, task_of
from bench.studies.adversarial_training.connectivity import Along
from bench.studies.adversarial_training.instance_difficulty import (
    History,
    distance,
    feature_norms,
    groups,
    means_of_groups,
)
from bench.studies.claims import Findings, effect_claim, mean_interval, rank_correlation


def test_difficulty_is_the_rank_of_the_loss():
    loss = np.array([3.0, 1.0, 2.0, 2.0])
    found = difficulty.difficulty(loss)
    brute = [(np.sum(each < loss) + 0.5 * np.sum(each == loss)) / len(loss) for each in loss]
    assert np.allclose(found, brute)
    assert found.argmin() == 0  # the largest loss is the hardest


def test_the_distance_of_random_difficulties_is_a_third():
    rng = np.random.default_rng(0)
    values = [distance(*(difficulty.difficulty(rng.random(2000)) for _ in range(2))) for _ in range(20)]
    assert mean_interval(values).low < 1 / 3 < mean_interval(values).high
    assert max(values) < 0.375
    assert distance(np.array([0.25, 0.75]), np.array([0.75, 0.25])) == 0.5


def test_groups_are_tenths_with_the_hardest_first():
    values = np.array([0.005, 0.095, 0.1, 0.55, 0.995, 1.0])
    assert groups(values).tolist() == [0, 0, 1, 5, 9, 9]
    ranks = difficulty.difficulty(np.arange(100.0))
    assert np.allclose(means_of_groups(np.arange(100.0), ranks), np.arange(94.5, 0, -10))


def test_groups_of_examples_without_a_difficulty_of_their_own_show_nothing():
    rng = np.random.default_rng(0)

    def history():
        """Each loss falls from 2 to 0 at a random epoch."""
        falls = rng.integers(1, 20, size=(2000, 1))
        loss = 2.0 * (np.arange(20) < falls)
        return History(loss, loss > 1)

    runs, found = [history() for _ in range(5)], Findings(inches=(1, 1))
    difficulty.over_epochs(runs, found)
    difficulty.growing_features(runs[1], runs[0].loss, found)
    assert {claim.verdict for claim in found.claims} == {"not tested at this size"}


def test_subsets_are_balanced():
    y = np.array([0, 0, 0, 1, 1, 1, 1])
    assert class_balanced(np.array([6, 2, 0, 5, 1, 3, 4]), y, 4).tolist() == [0, 2, 5, 6]


def test_errors_and_features_under_attack():
    task = task_of("digits", None).first(50, 20)
    model = task.loop("standard", eps=0.0, seed=0).model
    clean, robust = (measure(model, task.test_split(), threat) for threat in (None, ThreatModel("Linf", 0.2)))
    assert clean.loss.shape == (20,)
    assert float(robust.loss.mean()) > float(clean.loss.mean())
    assert robust.error >= clean.error
    (batch,) = task.test_split().in_order(20)
    fgsm = attacked(model, batch, ThreatModel("Linf", 0.2), 0, steps=1)
    x = batch.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model.eval()(x), batch.y), x)
    assert torch.allclose(fgsm, (batch.x + 0.2 * gradient.sign()).clamp(0, 1), atol=1e-5)
    norms = feature_norms(model, task.test_split(), ThreatModel("Linf", 1e-6), 0)
    batch = task.test_split().take(torch.arange(20))
    with torch.no_grad():
        assert np.allclose(norms, model[:-1](batch.x).norm(dim=1).numpy(), atol=1e-3)


def test_the_same_seed_is_the_same_training_and_eps_0_is_vanilla():
    task = task_of("digits", None).first(64, 10)
    first, second = (task.loop("pgd-at", eps=0.1, seed=3, epochs=1, steps=1) for _ in range(2))
    other = task.loop("pgd-at", eps=0.1, seed=4, epochs=1, steps=1)
    for loop in (first, second, other):
        loop.run_epoch()
    states = [torch.cat([p.flatten() for p in loop.model.parameters()]) for loop in (first, second, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert type(task.loop("pgd-at", eps=0.0, seed=3).defense).__name__ == "Standard"


def test_a_barrier_is_above_the_worse_end():
    each = Along(np.array([[1.0, 5.0, 2.0], [1.0, 0.5, 0.2]]), np.zeros((2, 3)))
    assert each.barrier.tolist() == [3.0, 0.0]


def test_verdicts_follow_intervals():
    assert effect_claim("a", "", mean_interval([1.0, 1.1, 0.9])).verdict == "holds"
    assert effect_claim("a", "", mean_interval([-1.0, -1.1, -0.9])).verdict == "does not hold"
    assert effect_claim("a", "", mean_interval([1.0, -1.0, 0.1])).verdict == "not tested at this size"
    x = np.arange(20.0)
    rising = rank_correlation(x, x**3)
    assert rising.mean == pytest.approx(1)
    assert rising.low > 0.99
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):  # independent values: the correlation is 0
        interval = rank_correlation(rng.random(15), rng.random(15))
        covered += interval.low <= 0 <= interval.high
    assert covered / 300 > 0.9


TINY = {"steps": 1, "alpha": "1eps"}
STUDIES = {
    "difficulty": (difficulty, difficulty.DifficultyStudy, difficulty.Plan(60, 3, 6, 0.1, TINY, "fc1:width=8")),
    "subsets": (
        subsets, subsets.SubsetsStudy, subsets.Plan(90, 30, 2, 2, 4, 2, {"Linf": (0.1, 0.2), "L2": (0.5,)}, TINY),
    ),
    "lipschitz": (
        lipschitz_bounds, lipschitz_bounds.LipschitzStudy, lipschitz_bounds.Plan(90, 2, 1, 2, 1, (0.05, 0.1), TINY),
    ),
    "hessian": (
        hessian, hessian.HessianStudy,
        hessian.Plan(64, 20, (0.0, 0.1, 0.2), 2, 2, TINY, top=2, lengths=(0.1, 0.2), runs=1, side=3),
    ),
    "gradients": (gradients, gradients.GradientsStudy, gradients.Plan(128, (0.0, 0.1, 0.2), 2, 3, 2, TINY)),
    "connectivity": (
        connectivity, connectivity.ConnectivityStudy, connectivity.Plan(64, 20, (0.0, 0.2), 2, 2, 2, TINY, points=3),
    ),
    "instance-weights": (
        instance_weights, instance_weights.InstanceWeightsStudy, instance_weights.Plan(60, 2, 6, 0.1, 1),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_each_study_reports_its_figures(name, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    module, study, plan = STUDIES[name]
    monkeypatch.setitem(module.PLANS, ("digits", True), plan)
    result = json.loads(study(json=True, figure=str(tmp_path / "a.svg")).run())
    assert result["tables"]
    assert all(claim["measured"] for claim in result["claims"])
    assert "Figure" in (tmp_path / "a.svg").read_text()
