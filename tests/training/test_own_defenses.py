"""Defenses of plugins: their steps, passes, losses and predictors, or one line before the training."""

import copy
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.testing.contracts import Stopped, same, stop_in_second_epoch, tiny_batch, tiny_model, tiny_split
from bench.training.loop import Loop
from bench.training.schedules import learning_rate, times_without_effect
from defenses.standard import Standard
from tests.training.own_defenses import (
    STEPS,
    EnsemblePredictor,
    FreeAT,
    LatentAttack,
    OnlyLive,
    OtherWeights,
    Replays,
    SnapshotEnsemble,
)

N, EPOCHS, BATCHES = 40, 3, 3
QUICK = {"epochs": EPOCHS, "batch_size": 16, "crop": 0, "flip": False, "schedule": "constant", "lr": 0.01}


def loop_of(kind, probe=None, model=None, **settings):
    defense = kind(kind.config_class(**QUICK | settings))
    built = defense.build(model or tiny_model())
    return Loop(built, defense, tiny_split(), ThreatModel("Linf", 0.3), seed=0, probe=probe)


def states(model):
    return list(model.state_dict().values())


def test_repeated_batches_are_steps():
    loop = loop_of(FreeAT, schedule="triangular", lr=1.0)
    steps = EPOCHS * BATCHES * Replays().replays
    assert loop.steps == steps
    rates, notes = [], []
    step = loop.step

    def recorded():
        step()
        rates.append(loop.optimizer.param_groups[0]["lr"])

    loop.step = recorded
    _, cost = loop.run(report=lambda n, note, *, loss: notes.append((n, note, float(loss))))
    assert rates == [learning_rate(loop.config, k / steps) for k in range(steps)]
    assert [n for n, _, _ in notes] == [1] * steps
    assert notes[-1][1] == f"epoch {EPOCHS}/{EPOCHS}"
    assert min(loss for _, _, loss in notes) > 0
    assert (cost.forwards, cost.backwards) == (EPOCHS * 4 * N, EPOCHS * 4 * N)
    assert cost.warnings == []


def test_counting_the_batches_changes_nothing():
    class Own(Standard):
        def batches(self, trainer):
            trainer.bank["seen"] = trainer.bank.get("seen", torch.zeros(())) + 1
            yield from trainer.shuffled()

        def predictor(self, trainer):  # which rehearses the training
            return trainer.model

    loop = loop_of(Own, ema=0.0)
    predictor, cost = loop.run()
    plain, plain_cost = loop_of(Standard).run()
    assert same(states(predictor), states(plain))
    assert int(loop.bank["seen"]) == EPOCHS
    assert (cost.forwards, cost.backwards) == (plain_cost.forwards, plain_cost.backwards)
    assert all(p.grad is None for p in predictor.parameters())


@pytest.mark.parametrize(("counts", "said"), [
    ([3, 2, 3], "gave 3 before the training, and 2 in epoch 2"),
    ([2, 2, 3], "gave 2 before the training, and more in epoch 3"),
])  # fmt: skip
def test_epochs_of_different_length_are_refused(counts, said):
    class Uneven(Standard):
        def batches(self, trainer):
            for _, batch in zip(range(counts[trainer.epoch]), trainer.shuffled(), strict=False):
                yield batch

    with pytest.raises(UserError, match=rf"\AUneven\.batches .*{said}\Z"):
        loop_of(Uneven).run()


def test_batches_without_an_end_or_none_are_refused_before_the_training():
    class Endless(Standard):
        def batches(self, trainer):
            while True:
                yield from trainer.shuffled()

    class Empty(Standard):
        def batches(self, trainer):
            yield from ()

    for kind, many in ((Endless, "more than 3000"), (Empty, "none")):
        with pytest.raises(UserError, match=rf"\A{kind.__name__}\.batches must give.*{many}\Z"):
            loop_of(kind)


def test_a_step_without_an_update_is_refused():
    class Idle(Standard):
        def train_step(self, batch, trainer):
            trainer.backward(cross_entropy(trainer.model(batch.x), batch.y))

    with pytest.raises(UserError, match=r"\AIdle\.train_step must call trainer\.update"):
        loop_of(Idle).run()


def test_the_loss_of_the_log_is_that_of_an_update():
    class Updates(Standard):
        def train_step(self, batch, trainer):
            for _ in range(5):
                trainer.update(cross_entropy(trainer.model(batch.x), batch.y) * 0 + 2)

    class Parts(Standard):  # two terms of one loss
        def train_step(self, batch, trainer):
            loss = cross_entropy(trainer.model(batch.x), batch.y) * 0
            trainer.backward(loss + 1.5)
            trainer.update(cross_entropy(trainer.model(batch.x), batch.y) * 0 + 0.5)

    for kind in (Updates, Parts):
        loop = loop_of(kind)
        loop.run()
        assert [line["loss"] for line in loop.log] == [2.0] * EPOCHS


def test_passes_through_the_network_in_an_ensemble_are_whole_passes():
    _, cost = loop_of(SnapshotEnsemble).run()
    assert (cost.forwards, cost.backwards) == (EPOCHS * N * (STEPS + 1), EPOCHS * N * (STEPS + 1))
    _, cost = loop_of(OnlyLive).run()
    assert (cost.forwards, cost.backwards) == (EPOCHS * N, EPOCHS * N)


def test_passes_through_a_part_of_the_network_are_shares():
    convolution, linear = 4 * 9 * 64, 4 * 64 * 10  # multiply-adds of the tiny model
    features, last = (each / (convolution + linear) for each in (convolution, linear))
    _, cost = loop_of(LatentAttack).run()
    assert cost.forwards == round(EPOCHS * N * (features + (STEPS + 1) * last))
    assert cost.backwards == round(EPOCHS * N * (features + (STEPS + 1) * last))


def test_passes_with_other_weights_and_in_chunks_are_whole_passes():
    _, cost = loop_of(OtherWeights).run()
    assert (cost.forwards, cost.backwards) == (EPOCHS * N, EPOCHS * N)


@pytest.mark.parametrize("kind", [FreeAT, SnapshotEnsemble, LatentAttack])
def test_own_defenses_resume_and_are_rebuilt_from_their_weights(kind, tmp_path):
    whole, cost = loop_of(kind).run()
    stopped = loop_of(kind)
    with suppress(Stopped):
        stopped.run(tmp_path, stop_in_second_epoch)
    resumed, same_cost = loop_of(kind).run(tmp_path)
    assert same(states(whole), states(resumed))
    assert (cost.forwards, cost.backwards) == (same_cost.forwards, same_cost.backwards)
    defense = kind(kind.config_class())
    rebuilt = defense.build(tiny_model()).eval()
    rebuilt.load_state_dict(whole.state_dict(), strict=True)
    assert torch.equal(rebuilt(tiny_batch().x), whole(tiny_batch().x))


class Scaled(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return 2 * self.model(x)


class Half(Standard):
    def predictor(self, trainer):
        twin = copy.deepcopy(trainer.model)
        twin.forward = lambda x: trainer.model(x) / 2
        return twin


class Wrapped(Standard):
    def predictor(self, trainer):
        return Scaled(trainer.model)


class Nothing(Standard):
    def predictor(self, trainer):
        return None


@pytest.mark.parametrize(("kind", "said"), [
    (EnsemblePredictor, "it is a Snapshots with different weights"),
    (Wrapped, "it is a Scaled with different weights"),
    (Half, "other logits"),
    (Nothing, "it is a NoneType"),
])  # fmt: skip
def test_a_predictor_that_cannot_be_rebuilt_is_refused_before_the_training(kind, said):
    with pytest.raises(UserError, match=rf"\A{kind.__name__}\.predictor .*{said}.*let `build` make it.*\Z"):
        loop_of(kind)


def test_a_predictor_with_other_weights_is_accepted():
    class Average(Standard):
        def prepare(self, trainer):
            for key, value in trainer.model.state_dict().items():
                trainer.bank[key] = value.clone()

        def after_step(self, trainer):
            for key, value in trainer.model.state_dict().items():
                trainer.bank[key] = (trainer.bank[key] + value) / 2 if value.is_floating_point() else value

        def predictor(self, trainer):
            twin = copy.deepcopy(trainer.model)
            twin.load_state_dict({key: trainer.bank[key] for key in twin.state_dict()})
            return twin

    predictor, _ = loop_of(Average).run()
    loop = loop_of(Standard)
    average = {key: value.clone() for key, value in loop.model.state_dict().items()}
    step = loop.step

    def averaged():
        step()
        for key, value in loop.model.state_dict().items():
            average[key] = (average[key] + value) / 2 if value.is_floating_point() else value

    loop.step = averaged
    loop.run()
    assert same(list(average.values()), states(predictor))


def test_what_a_defense_or_a_model_raises_is_one_line():
    class Broken(Standard):
        def train_step(self, batch, trainer):
            trainer.update(trainer.model(batch.x.flatten(1)).sum())

    class OnlyEval(nn.Module):
        def forward(self, x):
            if self.training:
                raise NotImplementedError("only eval mode")
            return x.flatten(1)

    with pytest.raises(UserError, match=r"\ABroken\.train_step failed at \S+\.py:\d+: RuntimeError.*\Z"):
        loop_of(Broken).run()
    with pytest.raises(UserError, match=r"\Athe model in train mode.* failed at .*only eval mode\Z"):
        loop_of(Standard, model=nn.Sequential(OnlyEval(), nn.Linear(64, 10)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_in_another_precision_are_refused_before_the_training(dtype):
    with pytest.raises(UserError, match=rf"\Athe model's '0.weight' is in {str(dtype)[6:]}; .*model.float\(\)\Z"):
        loop_of(Standard, model=tiny_model().to(dtype))


@pytest.mark.parametrize(("points", "steps", "lost"), [
    ((0.8, 28 / 30), 30, None),
    ((0.8, 28 / 30), 12, "0.933"),
    ((0.5, 0.6), 3, "0.5"),
    ((0.3,), 1, "0.3"),
    ((0.0, 1.0), 1, None),  # never and always
    ((), 1, None),
    ((1 / 3, 2 / 3), 3, None),
])  # fmt: skip
def test_points_in_time_without_a_step_are_warned_of(points, steps, lost):
    warnings = list(times_without_effect({"milestones": points}, steps))
    assert len(warnings) == (lost is not None)
    if lost is not None:
        assert warnings[0].startswith(f"milestones: {lost} has no effect")


def test_fractions_that_are_rounded_to_nothing_are_warned_of():
    class Resets(Standard):
        def end_epoch(self, trainer):
            if trainer.ends_at(0.1, 1 / 3, 0.4):
                trainer.bank["reset"] = torch.tensor(trainer.epoch)

    loop = loop_of(Resets)
    _, cost = loop.run()
    assert [warning[:5] for warning in cost.warnings] == ["0.1 o", "0.333", "0.4 o"]
    assert int(loop.bank["reset"]) == 0
    assert loop_of(Resets, epochs=10).run()[1].warnings == []
