"""`bench.api.evaluate` on inputs and models of all kinds: a result, or one line."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from bench.api import ThreatModel, UserError, evaluate
from bench.core.records import Sanity
from bench.evaluate import evaluation
from tests.linear import interior_batch, linear_model

SHAPE = (1, 4, 4)
THREAT = ThreatModel("Linf", 0.05)
MODEL = linear_model(SHAPE, 4)
BATCH = interior_batch(MODEL, SHAPE, 20)


class Around(nn.Module):
    """A linear model called by a function (model, x) -> output."""

    def __init__(self, call):
        super().__init__()
        self.linear = linear_model(SHAPE, 4)
        self.call = call

    def forward(self, x):
        return self.call(self.linear, x)


def robust(model=MODEL, attacks=("pgd-5", "fab-5"), **changes):
    found = evaluate(model, changes.pop("x", BATCH.x), changes.pop("y", BATCH.y), threat=THREAT, attacks=attacks)
    return {spec: found.table[f"robust/{spec}"] for spec in found.attacks}


@pytest.fixture
def no_verdict(monkeypatch):
    """Leave out the sanity checks, which take a second."""
    monkeypatch.setattr(evaluation, "form_verdict", lambda *_, **__: Sanity("no-warnings", [], []))


@pytest.fixture
def expected(no_verdict):
    return robust()


def same(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[spec], expected[spec]) for spec in expected)


@pytest.mark.parametrize("state", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(state, expected):
    with state():
        assert same(robust(), expected)
        assert same(robust(linear_model(SHAPE, 4), x=BATCH.x + 0, y=BATCH.y + 0), expected)


def test_under_another_default_dtype(expected):
    torch.set_default_dtype(torch.float64)
    try:
        assert same(robust(), expected)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("call", [
    lambda net, x: net(x).double(), lambda net, x: net(x.mul_(1.0)), lambda net, x: net[1](x.view(len(x), -1)),
])  # fmt: skip
def test_models_that_compute_the_same_give_the_same(call, expected):
    permuted = BATCH.x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    before = permuted.clone()
    assert same(robust(Around(call), x=permuted), expected)
    assert torch.equal(permuted, before)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_half_precision_and_torchscript(expected):
    assert set(robust(linear_model(SHAPE, 4).half())) == set(expected)
    assert same(robust(torch.jit.freeze(torch.jit.trace(linear_model(SHAPE, 4).eval(), BATCH.x))), expected)


def test_a_model_without_a_gradient_gets_the_verdict_made_for_it():
    found = evaluate(
        Around(lambda net, x: net(x.detach())), BATCH.x, BATCH.y, threat=ThreatModel("Linf", 0.3), attacks="pgd-5"
    )
    assert found.sanity.verdict == "unreliable"
    assert any("zero-gradient" in reason for reason in found.sanity.reasons)


@pytest.mark.usefixtures("no_verdict")
def test_gradients_that_are_not_finite_are_a_warning_of_the_attack():
    x = BATCH.x * (torch.arange(4) > 1)
    model = Around(lambda net, x: net(x.sqrt()))
    found = evaluate(model, x, model(x).argmax(dim=1), threat=ThreatModel("L2", 1.0), attacks="pgd-5,fab-5")
    for attack in found.attacks.values():
        assert any("not finite" in warning for warning in attack.warnings)
        assert attack.robust_acc < 0.3


@pytest.mark.slow
def test_dropout_left_in_train_mode_is_judged_as_it_is():
    model = nn.Sequential(*MODEL, nn.Dropout(0.5)).eval()
    with torch.no_grad():
        assert torch.equal(model(BATCH.x), MODEL(BATCH.x))
    model[2].train()
    with pytest.warns(UserWarning, match=r"stay so \(2\)"):
        found = evaluate(model, BATCH.x, BATCH.y, threat=THREAT, attacks="pgd-5")
    assert found.sanity.verdict == "unreliable"
    assert any("stochastic" in reason for reason in found.sanity.reasons)
    assert model[2].training
    with pytest.raises(UserError, match=r"cannot be certified \(2\); call model.eval"):
        evaluate(model, BATCH.x, BATCH.y, threat=THREAT, attacks=(), certifiers="ibp")


@pytest.mark.usefixtures("no_verdict")
@pytest.mark.filterwarnings("ignore:modules in train mode")
def test_batch_norm_left_in_train_mode_keeps_its_statistics():
    model = nn.Sequential(nn.BatchNorm2d(1), *linear_model(SHAPE, 4)).eval()
    model[0].train()
    evaluate(model, BATCH.x, BATCH.y, threat=THREAT, attacks="pgd-5")
    assert model[0].running_mean == 0
    assert model[0].num_batches_tracked == 0


def fails(*_):
    raise ValueError("first line\nsecond line")


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": Around(fails)}, "the model, called on images of shape .* failed at test_inputs.py:.*first line"),
    ({"model": Around(lambda net, x: net(x).numpy())}, "the model must return logits|failed at"),
    ({"model": lambda x: x}, "takes a torch.nn.Module, not function"),
    ({"model": Around(lambda net, x: net(x)[:, :1])}, "one logit per image"),
    ({"model": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "x": torch.rand(20, 8, 8, 3)},
     r"looks like \(N,H,W,C\); pass x.permute\(0, 3, 1, 2\)"),
    ({"threat": ThreatModel("Linf", 8.0)}, "write 8/255 for 8 grey levels"),
    ({"threat": ThreatModel("L2", 100.0)}, r"L2 eps is in \(0, 4\]"),
    ({"attacks": "fgms"}, "unknown attack 'fgms'"),
    ({"attacks": [1]}, "a spec is text"),
    ({"attacks": "pgd:eps=2"}, "write 2/255"),
])  # fmt: skip
def test_what_cannot_be_evaluated_is_a_user_error_of_one_line(changes, message):
    arguments = {"model": MODEL, "x": BATCH.x, "y": BATCH.y, "threat": THREAT, "attacks": "pgd-5"} | changes
    with pytest.raises(UserError, match=rf"\A.*({message}).*\Z"):
        evaluate(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)


def test_autocast_is_refused_outside_of_the_model():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match="use autocast in the model's forward"):
        robust()


def test_an_integer_eps_and_specs_as_one_text(expected):
    found = evaluate(MODEL, BATCH.x, BATCH.y, threat=ThreatModel("L2", 1), attacks="fgsm, pgd-5", certifiers="ibp")
    assert list(found.attacks) == ["fgsm", "pgd-5"]
    assert list(found.certifiers) == ["ibp"]
    assert same(robust(attacks="pgd-5,fab-5"), expected)


@pytest.mark.filterwarnings("ignore")  # the model warns in other calls than the attack's too
@pytest.mark.parametrize(("category", "expected"), [(UserWarning, ["look"]), (DeprecationWarning, [])])
def test_warnings_about_the_code_of_a_library_are_not_those_of_an_attack(category, expected, no_verdict):
    def warn(linear, x):
        warnings.warn("look", category, stacklevel=2)
        return linear(x)

    found = evaluate(Around(warn), BATCH.x, BATCH.y, threat=THREAT, attacks=["fgsm"])
    assert found.attacks["fgsm"].warnings == expected
