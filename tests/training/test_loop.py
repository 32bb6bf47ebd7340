import json
import math

import pytest
import torch
from torch import nn

from bench.core.config import TrainingConfig
from bench.core.errors import CheckError, UserError
from bench.core.threat import ThreatModel
from bench.testing.contracts import CPU, EPS, DefenseContract, tiny_batch, tiny_model, tiny_split
from bench.training.checkpoints import BuildSpec, save_checkpoint, save_weights
from bench.training.loop import Loop
from bench.training.overfitting import has_collapsed
from bench.training.probe import make_probe
from bench.training.rebuild import load_weights
from bench.training.schedules import learning_rate
from defenses.standard import Standard


def loop_of(probe=None, model=None, **settings):
    config = TrainingConfig(**{"epochs": 4, "batch_size": 16, "crop": 0, "flip": False} | settings)
    return Loop(
        model or tiny_model(), Standard(config), tiny_split(), ThreatModel("Linf", EPS["Linf"]), seed=0, probe=probe
    )


@pytest.mark.parametrize(("schedule", "points"), [
    ("piecewise", {0.0: 1.0, 0.79: 1.0, 24 / 30: 0.1, 0.9: 0.1, 28 / 30: 0.01, 0.99: 0.01}),
    ("triangular", {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.75: 0.5}),
    ("cosine", {0.0: 1.0, 0.5: 0.5, 2 / 3: 0.25}),
    ("constant", {0.0: 1.0, 0.9: 1.0}),
])  # fmt: skip
def test_schedules_at_known_points(schedule, points):
    config = TrainingConfig(schedule=schedule, lr=1.0)
    for progress, wanted in points.items():
        assert math.isclose(learning_rate(config, progress), wanted, abs_tol=1e-9)


def test_the_learning_rate_falls_at_the_first_step_of_the_milestone_epoch():
    loop = loop_of(epochs=30, lr=1.0)
    rates = []
    for step in range(30 * loop.steps_per_epoch):
        loop.steps_done = step
        rates.append(loop.lr)
    first = rates.index(min(rates[: 28 * loop.steps_per_epoch]))
    assert first == 24 * loop.steps_per_epoch


def test_a_loss_that_is_not_finite_stops_the_training_with_advice():
    loop = loop_of(lr=1e30)
    with pytest.raises(CheckError, match=r"not|nan|inf"):
        loop.run()


def test_the_log_has_a_line_for_each_epoch(tmp_path):
    loop_of(epochs=3).run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(line["loss"] > 0 and line["seconds"] >= 0 for line in lines)


def test_selection_keeps_the_weights_of_the_best_epoch():
    scores = iter([0.2, 0.9, 0.3, 0.5])
    kept = []

    def probe(model):
        kept.append([value.clone() for value in model.state_dict().values()])
        return {"fgsm": 0.5, "pgd": next(scores)}

    predictor, _ = loop_of(probe, select="best", validation=0.1).run()
    for value, wanted in zip(predictor.state_dict().values(), kept[1], strict=True):
        assert torch.equal(value, wanted)


def test_the_last_weights_are_kept_without_selection():
    scores = iter([0.2, 0.9, 0.3, 0.5])
    loop = loop_of(lambda _: {"fgsm": 0.5, "pgd": next(scores)})
    predictor, _ = loop.run()
    assert predictor is loop.model


def test_a_collapse_is_warned_of():
    pairs = iter([(0.5, 0.4), (0.55, 0.42), (0.9, 0.05), (0.95, 0.0)])
    _, cost = loop_of(lambda _: dict(zip(("fgsm", "pgd"), next(pairs), strict=True))).run()
    assert "catastrophic overfitting in epoch 3" in cost.warnings[0]


@pytest.mark.parametrize(("history", "wanted"), [
    ([(0.5, 0.4), (0.9, 0.1)], True),
    ([(0.5, 0.4), (0.9, 0.3)], False),  # PGD accuracy holds
    ([(0.5, 0.4), (0.2, 0.1)], False),  # both fall: a bad epoch, another trouble
    ([(0.2, 0.1), (0.9, 0.0)], False),  # there was no robustness to lose
    ([(0.9, 0.1)], False),
    ([], False),
])  # fmt: skip
def test_what_counts_as_catastrophic_overfitting(history, wanted):
    assert has_collapsed(history) == wanted


def test_the_weight_average_is_the_exponential_one():
    loop = loop_of(epochs=1, ema=0.9)
    batches = list(loop.shuffled())
    average = None
    for batch in batches:
        loop.defense.train_step(batch, loop)
        weight = loop.model[0].weight.detach()
        average = weight.clone() if average is None else 0.9 * average + 0.1 * weight
    assert torch.allclose(loop.averaged[0].weight, average, atol=1e-6)
    assert loop.defense.predictor(loop) is loop.averaged


def test_an_averaged_run_goes_on_bit_for_bit(tmp_path):
    whole = loop_of(ema=0.5).run()[0].state_dict()
    part = loop_of(ema=0.5)
    for _ in range(2):
        part.run_epoch()
    save_checkpoint(tmp_path, part.state(), "")
    resumed = loop_of(ema=0.5).run(tmp_path)[0].state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("finished", [1, 3])
def test_layers_with_random_numbers_go_on_bit_for_bit(tmp_path, finished):
    def dropping():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    torch.manual_seed(0)
    start = dropping().state_dict()

    def loop():
        model = dropping()
        model.load_state_dict(start)
        return loop_of(model=model)

    whole = loop().run()[0].state_dict()
    part = loop()
    for _ in range(finished):
        part.run_epoch()
    save_checkpoint(tmp_path, part.state(), "")
    torch.manual_seed(9)
    resumed = loop().run(tmp_path)[0].state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_passes_are_counted():
    _, cost = DefenseContract().loop("pgd-at", steps="3", epochs=2).run()
    assert (cost.forwards, cost.backwards) == (2 * 40 * 4, 2 * 40 * 4)


def test_a_probe_is_a_cost_of_the_training_only_where_it_selects():
    def probe(model):
        model(tiny_batch().x)
        return {"fgsm": 0.5, "pgd": 0.5}

    for settings, passes in (({}, 0), ({"select": "best", "validation": 0.1}, 4 * 6)):
        _, cost = loop_of(probe, **settings).run()
        assert cost.forwards == 4 * 40 + passes


class Sqrt(nn.Module):
    """Its gradient is infinite at black pixels, and NaN where a factor of zero meets it."""

    def forward(self, x):
        return x.sqrt() + 0 * (x * 0).sqrt()


def test_gradients_that_are_not_finite_do_not_end_a_training_by_its_probe():
    split, model = tiny_split(), nn.Sequential(Sqrt(), *tiny_model())
    split.canvas[:, :, :4] = 0
    loop = loop_of(make_probe(split, ThreatModel("Linf", 0.3), None), model=model, epochs=2)
    _, cost = loop.run()
    assert all(0 <= line["pgd"] <= 1 for line in loop.log)
    assert not [warning for warning in cost.warnings if "probe" in warning]


def test_a_probe_that_fails_is_a_warning_unless_it_selects():
    def probe(model):
        raise CheckError("the attack failed")

    _, cost = loop_of(probe, schedule="constant", probe_every=3).run()
    assert cost.warnings == [f"there is no probe after epoch {epoch}: the attack failed" for epoch in (3, 4)]
    with pytest.raises(CheckError, match="the attack failed"):
        loop_of(probe, select="best", validation=0.1).run()


class Tied(nn.Module):
    """One layer under two names, used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = self.first
        self.output = nn.Linear(64, 10)

    def forward(self, x):
        return self.output(self.second(self.first(x.flatten(1)).relu()).relu())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_layer_that_is_used_twice_is_trained_saved_and_loaded(ema, tmp_path):
    torch.manual_seed(0)
    whole, _ = loop_of(model=Tied(), ema=ema).run()
    torch.manual_seed(0)
    part = loop_of(model=Tied(), ema=ema)
    for _ in range(2):
        part.run_epoch()
    save_checkpoint(tmp_path, part.state(), "")
    resumed, _ = loop_of(model=Tied(), ema=ema).run(tmp_path)
    spec = BuildSpec(model="mine.py:tied", shape=(1, 8, 8), classes=10, defense=None, training={})
    save_weights(tmp_path / "weights.safetensors", whole, spec)
    loaded = Tied().eval()
    load_weights(loaded, tmp_path / "weights.safetensors")
    x = tiny_batch().x
    assert torch.equal(loaded(x), whole(x))
    assert torch.equal(resumed(x), whole(x))
    assert loaded.second.weight is loaded.first.weight


def test_a_run_that_was_begun_on_another_device_is_not_gone_on_with(tmp_path):
    loop = loop_of()
    loop.run_epoch()
    save_checkpoint(tmp_path, loop.state() | {"device": "cuda"}, "")
    with pytest.raises(UserError, match="begun on cuda"):
        loop_of().run(tmp_path)


def test_a_broken_checkpoint_is_warned_of_and_the_training_starts_again(tmp_path, capsys):
    for broken in ({"a": 1}, [1]):
        torch.save(broken, tmp_path / "checkpoint.pt")
        predictor, _ = loop_of().run(tmp_path)
        assert "starts again" in capsys.readouterr().err
        whole = loop_of().run()[0].state_dict()
        assert all(torch.equal(value, whole[key]) for key, value in predictor.state_dict().items())


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(UserError, match="nothing to train"):
        loop_of(model=nn.Flatten())


def test_the_gradient_is_clipped():
    loop = loop_of(clip_grad=1e-3, momentum=0.0, weight_decay=0.0, schedule="constant", lr=1.0)
    before = [p.detach().clone() for p in loop.model.parameters()]
    loop.defense.train_step(next(loop.shuffled()), loop)
    moved = torch.cat([(p - b).flatten() for p, b in zip(loop.model.parameters(), before, strict=True)])
    assert moved.norm() <= 1e-3 * 1.001
    assert tiny_batch().x.device == CPU


def test_the_fast_path_trains_in_bfloat16_and_channels_last():
    loop = loop_of(crop=0)
    loop.execution.bfloat16 = True  # as on a GPU that gains by it
    seen = []
    loop.model[0].register_forward_hook(lambda *call: seen.append(call[2].dtype))
    before = loop.model[0].weight.detach().clone()
    loop.run_epoch()
    assert set(seen) == {torch.bfloat16}
    assert loop.model[0].weight.dtype == torch.float32
    assert not torch.equal(before, loop.model[0].weight)
    assert next(loop.shuffled()).x.is_contiguous(memory_format=torch.channels_last)


def test_full_precision_is_used_where_the_device_does_not_gain():
    loop = loop_of()
    seen = []
    loop.model[0].register_forward_hook(lambda *call: seen.append(call[2].dtype))
    loop.run_epoch()
    assert set(seen) == {torch.float32}
