"""What a plugin may import, and `evaluate` with certifiers and a bracket."""

import numpy as np
import pytest
from torch import nn

from bench.api import OfEps, ThreatModel, UserError, evaluate, train
from bench.core.clopper_pearson import interval
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE = (1, 5, 5)
THREAT = ThreatModel("Linf", 0.03)


@pytest.fixture
def linear():
    model = linear_model(SHAPE, 4)
    batch = interior_batch(model, SHAPE, 30)
    return model, batch, exact_margin(model, batch, THREAT).numpy()


def test_certifiers_prove_what_is_exactly_known_of_a_linear_model(linear):
    model, batch, margin = linear
    found = evaluate(model, batch.x, batch.y, threat=THREAT, attacks=["pgd-10"], certifiers=["ibp", "crown"])
    assert list(found.certifiers) == ["ibp", "crown"]
    clear = np.abs(margin) > 1e-4
    assert 5 < (margin > 0).sum() < 25
    assert np.array_equal(found.table["certified/crown"][clear], (margin > 0)[clear])
    assert found.audited == 1


def test_a_bracket_of_a_linear_model_closes(linear):
    model, batch, margin = linear
    found = evaluate(model, batch.x, batch.y, threat=THREAT, attacks=[], bracket=100)
    clear = np.abs(margin) > 1e-4
    assert np.array_equal((found.table["status"] == "certified")[clear], (margin > 0)[clear])
    assert np.array_equal((found.table["status"] == "broken")[clear], (margin < 0)[clear])
    assert found.attacks == {}
    assert sorted(found.witnesses["index"]) == np.flatnonzero(found.table["status"] == "broken").tolist()


def test_a_bracket_takes_a_count_and_a_limit_of_time_is_an_option_of_its_own(linear):
    model, batch, _ = linear
    with pytest.raises(UserError, match=r"such as 1000, not 60\.0"):
        evaluate(model, batch.x, batch.y, threat=THREAT, attacks=[], bracket=60.0)
    with pytest.raises(UserError, match="time_limit is for a bracket"):
        evaluate(model, batch.x, batch.y, threat=THREAT, attacks=[], time_limit=60.0)
    found = evaluate(model, batch.x, batch.y, threat=THREAT, attacks=[], bracket=100, time_limit=0.001)
    assert found.bracket.truncated
    assert (found.bracket.budget, found.bracket.time_limit) == (100, 0.001)


def test_a_printed_evaluation_is_a_short_summary(linear, capsys):
    model, batch, _ = linear
    found = evaluate(model, batch.x, batch.y, threat=THREAT, attacks=["fgsm", "pgd-10"], certifiers=["ibp"])
    lines = str(found).splitlines()
    assert lines[0] == "30 examples"
    assert [line.split()[0] for line in lines[1:5]] == ["clean", "fgsm", "pgd-10", "certified"]
    robust = found.table["robust/fgsm"] & found.table["robust/pgd-10"]
    assert lines[5].split()[:5] == ["worst", "of", "all", "attacks", f"{robust.mean():.1%}"]
    low, high = interval(int(robust.sum()), 30)
    assert lines[5].endswith(f"[{low:.1%}, {high:.1%}]")
    assert list(found.accuracies) == ["clean", "fgsm", "pgd-10", "ibp"]
    assert found.accuracies["fgsm"] == found.table["robust/fgsm"].mean()
    assert lines[6] == "verdict: no warning signs"
    assert repr(found) == str(found)
    assert capsys.readouterr().err == ""


def test_a_threat_model_has_its_type(linear):
    model, batch, _ = linear
    with pytest.raises(UserError, match="as in ThreatModel"):
        evaluate(model, batch.x, batch.y, threat=("Linf", 0.1), attacks=["fgsm"])


def test_progress_is_shown_if_asked_for(linear, capsys):
    model, batch, _ = linear
    evaluate(model, batch.x, batch.y, threat=THREAT, attacks=["fgsm"], progress=True)
    assert "attack fgsm: " in capsys.readouterr().err


def test_what_cannot_be_certified_is_refused(linear):
    model, batch, _ = linear
    with pytest.raises(UserError, match="Linf"):
        evaluate(model, batch.x, batch.y, threat=THREAT, attacks=[], certifiers=["smoothing"])
    hard = nn.Sequential(*model, nn.Softmax(dim=1))
    for asked in ({"certifiers": ["ibp"]}, {"bracket": 1}):
        with pytest.raises(UserError, match="Softmax"):
            evaluate(hard, batch.x, batch.y, threat=THREAT, attacks=[], **asked)


def test_settings_of_a_training_are_values_or_those_of_a_spec(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr("bench.runs.run.train_seed", lambda plan, _: plans.append(plan) or nn.Identity())
    settings = {"epochs": 2, "milestones": (0.5, 0.75), "periods": [0.5], "flip": True, "alpha": OfEps(0.5)}
    train("pgd-at:steps=4", suite="digits", settings=settings, out=tmp_path)
    config = plans[0].defense.config
    assert (config.epochs, config.milestones, config.flip, config.steps) == (2, (0.5, 0.75), True, 4)
    assert (config.periods, config.alpha) == ((0.5,), OfEps(0.5))
    with pytest.raises(UserError, match="'steps' is given in 'pgd-at:steps=4' and as a setting"):
        train("pgd-at:steps=4", settings={"steps": 5}, out=tmp_path)
    with pytest.raises(UserError, match="seed takes an integer of at least 0, not -1"):
        train("pgd-at", suite="digits", seed=-1, out=tmp_path)
