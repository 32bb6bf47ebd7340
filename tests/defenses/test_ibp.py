"""Training through interval bounds: the schedules of eps and kappa, and the sub-sample."""

import pytest
import torch

import defenses.ibp
from bench.core.errors import UserError
from bench.testing.contracts import DefenseContract
from defenses.ibp import Config


def recorded_steps(monkeypatch, **settings):
    """The eps and the number of bounded images of each step, and the losses; bounds are zero, with a loss of log 10."""
    loop = DefenseContract().loop("ibp", **settings)
    batch = next(loop.shuffled())
    seen, losses = [], []

    def recorded(model, x, y, threat):
        seen.append((threat.eps, len(x)))
        return torch.zeros(len(y), 10)

    monkeypatch.setattr(defenses.ibp, "interval_worst_logits", recorded)
    monkeypatch.setattr(loop, "update", losses.append)
    for step in range(loop.steps):
        loop.steps_done = step
        loop.defense.train_step(batch, loop)
    return loop, seen, [each.item() for each in losses]


def test_eps_rises_and_kappa_falls_along_the_ramp_step_by_step(monkeypatch):
    loop, seen, losses = recorded_steps(monkeypatch, epochs="4", warm_up="0.25", ramp="0.5")
    assert loop.steps == 12
    shares = [max(0.0, min(1.0, (step / 12 - 0.25) / 0.5)) for step in range(12)]
    assert [eps for eps, _ in seen] == pytest.approx([loop.eps * share for share in shares if share])
    clean, flat = losses[0], torch.tensor(10.0).log().item()
    kappas = [1 - 0.5 * share for share in shares]
    # batch norm in train mode sees the same batch, so the clean loss stays what it was
    assert losses == pytest.approx([k * clean + (1 - k) * flat for k in kappas])


def test_only_the_sub_sample_is_bounded(monkeypatch):
    _, seen, _ = recorded_steps(monkeypatch, warm_up="0", ramp="0.1", subsample="5")
    assert {count for _, count in seen} == {5}


@pytest.mark.parametrize("settings", [{"kappa": 2}, {"warm_up": -1}, {"ramp": 0}, {"subsample": 0}])
def test_refuses_settings_without_a_meaning(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Config(**settings)
