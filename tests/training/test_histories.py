"""The losses that a training keeps, and the symptoms that its probe reports."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.core.config import TrainingConfig
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.testing.contracts import DefenseContract, tiny_batch, tiny_model, tiny_split
from bench.training.checkpoints import save_checkpoint
from bench.training.curves import KEYS, make_curves
from bench.training.histories import LOSS, LOSSES, WRONG, save_history
from bench.training.loop import Loop
from bench.training.probe import make_probe, spread_rows
from bench.training.symptoms import DEAD, ONE_CLASS, FiredUnits, share_of_one_class, warnings_of
from defenses.standard import Standard


def loop_of(name="standard", **settings):
    return DefenseContract().loop(name, epochs=2, **settings)


def test_the_first_losses_are_those_of_the_untrained_network():
    config = TrainingConfig(epochs=2, batch_size=40, crop=0, flip=False, keep_losses=True)
    loop = Loop(tiny_model(), Standard(config), tiny_split(), ThreatModel("Linf", 0.3), seed=0)
    batch = loop.split.take(torch.arange(len(loop.split)))
    with torch.no_grad():
        logits = loop.model.train()(batch.x)
    loop.run_epoch()
    wanted = cross_entropy(logits, batch.y, reduction="none")
    assert torch.allclose(loop.bank[LOSS][:, 0], wanted, atol=1e-5)
    assert torch.equal(loop.bank[WRONG][:, 0], logits.argmax(dim=1) != batch.y)
    assert loop.bank[LOSS][:, 1].isnan().all()
    loop.run_epoch()
    assert loop.bank[LOSS].isfinite().all()


@pytest.mark.parametrize("name", ["pgd-at", "trades", "free", "atas", "iat", "sat", "mart", "pas"])
def test_adversarial_losses_are_kept_and_do_not_change_the_training(name):
    kept, plain = loop_of(name, keep_losses=True), loop_of(name)
    states = [loop.run()[0].state_dict() for loop in (kept, plain)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert kept.bank[LOSS].isfinite().all()
    assert LOSS not in plain.bank


@pytest.mark.parametrize("name", ["trades", "hydra"])  # their last pass is on adversarial, and on clean images
def test_the_losses_are_those_of_the_adversarial_images(name):
    loop, seen = loop_of(name, keep_losses=True), []
    batch = next(loop.shuffled())
    handle = loop.model.register_forward_hook(lambda module, x, out: seen.append((module.training, x[0], out.detach())))
    loop.train_on(batch)
    handle.remove()
    (logits,) = [out for training, x, out in seen if training and x is not batch.x]
    wanted = cross_entropy(logits, batch.y, reduction="none")
    assert torch.allclose(loop.bank[LOSS][batch.index, 0], wanted, atol=1e-6)


def test_additional_data_have_no_history(tmp_path):
    np.savez(tmp_path / "it.npz", x_extra=np.full((80, 8, 8, 1), 255, np.uint8), y_extra=np.full(80, 3))
    loop = loop_of("pgd-at", keep_losses=True, extra=str(tmp_path / "it.npz"))
    batch = next(batch for batch in loop.shuffled() if loop.examples - 1 not in batch.index)  # the row of index -1
    loop.model.train()
    loop.train_on(batch)
    assert (batch.index < 0).any()
    assert loop.bank[LOSS][:, 0].isfinite().nonzero().squeeze(1).tolist() == sorted(
        i for i in batch.index.tolist() if i >= 0
    )


def test_a_history_goes_on_after_an_interruption_and_is_saved(tmp_path):
    whole, part = loop_of(keep_losses=True), loop_of(keep_losses=True)
    whole.run()
    part.run_epoch()
    save_checkpoint(tmp_path, part.state(), "")
    resumed = loop_of(keep_losses=True)
    resumed.run(tmp_path)
    assert torch.equal(whole.bank[LOSS], resumed.bank[LOSS])
    save_history(tmp_path, resumed.bank, np.arange(len(whole.split)) + 5)
    with np.load(tmp_path / LOSSES) as saved:
        assert np.array_equal(saved["loss"], whole.bank[LOSS].numpy())
        assert saved["wrong"].dtype == bool
        assert saved["index"][0] == 5
    save_history(tmp_path / "nowhere", {}, np.arange(2))  # nothing was kept, so nothing is written


def test_curves_hold_loss_and_error_of_both_splits():
    split, model = tiny_split(), tiny_model().eval()
    curves = make_curves(split, split, ThreatModel("Linf", 0.1), 10)
    values = curves(model)
    assert set(values) == set(KEYS)
    batch = split.take(torch.arange(10) * len(split) // 10)
    with torch.no_grad():
        logits = model(batch.x)
    assert values["test_clean_loss"] == pytest.approx(float(cross_entropy(logits, batch.y)), abs=1e-5)
    assert values["train_clean_error"] == pytest.approx(float((logits.argmax(dim=1) != batch.y).float().mean()))
    assert values["test_robust_loss"] > values["test_clean_loss"]
    assert set(make_curves(split, split, ThreatModel("L1", 1.0), 5)(model)) == {k for k in KEYS if "clean" in k}


def test_a_probe_of_sorted_data_sees_all_classes():
    split = tiny_split()
    order = split.y.argsort()
    ordered = Split.of_tensors(split.take(order).x, split.y[order])
    assert len(ordered.y.unique()) > 2
    assert len(ordered.y[spread_rows(ordered, 8)].unique()) > 2
    assert spread_rows(ordered, 10_000).tolist() == list(range(len(ordered)))


def test_dead_units_are_those_that_are_never_positive():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10), nn.ReLU())
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, -1.0, 0.0, -2.0]))
        model[3].bias.fill_(5.0)
    activity = FiredUnits()
    with activity.watching(model):
        model(torch.rand(5, 1, 8, 8))
    assert activity.dead_shares() == {"2": 0.75, "4": 0.0}
    assert activity.most_dead == 0.75
    model(torch.full((1, 1, 8, 8), 1e6))  # outside the block
    assert activity.most_dead == 0.75
    assert share_of_one_class(torch.tensor([3, 3, 1, 3])) == 0.75


def test_a_probe_sees_a_constant_classifier_with_dead_units():
    batch = tiny_batch()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(batch.x[0].numel(), 8), nn.ReLU(), nn.Linear(8, 10)
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[1].bias.fill_(-100.0)
    probed = make_probe(tiny_split(), ThreatModel("Linf", 0.1), None)(model)
    assert (probed[DEAD], probed[ONE_CLASS]) == (1.0, 1.0)
    found = warnings_of([], probed, 3, last=True)
    assert len(found) == 2
    assert "constant classifier" in found[0]
    assert "dead units" in found[1]
    assert warnings_of([], probed, 2, last=False) == []
    assert warnings_of([], {"fgsm": 0.9, "pgd": 0.8, DEAD: 0.2, ONE_CLASS: 0.3}, 3, last=True) == []
