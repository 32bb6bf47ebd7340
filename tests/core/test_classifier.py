"""What attacks see of a user's model."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.core import registry, seeds
from bench.core.classifier import NOT_FINITE, Classifier, as_classifier
from bench.core.contracts import Batch, frozen
from bench.core.errors import UserError
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel
from tests.linear import interior_batch, linear_model

SHAPE = (1, 3, 3)
LINEAR = linear_model(SHAPE, 4)
IMAGES = torch.rand((5, *SHAPE), generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """A linear model called by a function (model, x) -> output."""

    def __init__(self, call, dtype=torch.float32):
        super().__init__()
        self.linear = linear_model(SHAPE, 4).to(dtype)
        self.call = call

    def forward(self, x):
        return self.call(self.linear, x)


def gradient_of(model, x):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(Classifier(model)(x), torch.zeros(len(x), dtype=torch.long)), x)
    return gradient


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_and_logits_of_any_precision(dtype):
    for model in (Around(lambda net, x: net(x), dtype), Around(lambda net, x: net(x).to(dtype))):
        logits = Classifier(model)(IMAGES)
        assert logits.dtype == torch.float32
        assert torch.allclose(logits, LINEAR(IMAGES), atol=0.05)
        assert gradient_of(model, IMAGES).dtype == torch.float32


def test_float32_models_are_called_as_they_are():
    assert torch.equal(Classifier(LINEAR)(IMAGES), LINEAR(IMAGES))
    x = IMAGES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(LINEAR(x), torch.zeros(len(x), dtype=torch.long)), x)
    assert torch.equal(gradient_of(LINEAR, IMAGES), expected)


def test_a_model_may_write_into_its_input_or_view_permuted_images():
    permuted = IMAGES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for call in (lambda net, x: net(x.mul_(0.5)), lambda net, x: net[1](x.view(len(x), -1))):
        before = permuted.clone()
        assert Classifier(Around(call))(permuted).shape == (5, 4)
        assert gradient_of(Around(call), permuted).abs().sum() > 0
        assert torch.equal(permuted, before)


def test_the_gradient_of_logits_that_do_not_depend_on_the_images_is_zero():
    for call in (lambda net, x: net(x.detach()), lambda net, x: net(x).detach(), lambda _, x: torch.eye(len(x), 4)):
        assert (gradient_of(Around(call), IMAGES) == 0).all()


def test_gradients_are_finite_and_a_warning_says_so():
    x = IMAGES.clone()
    x[:, :, 0] = 0.0
    with pytest.warns(UserWarning, match=NOT_FINITE):
        gradient = gradient_of(Around(lambda net, x: net(x.sqrt())), x)
    assert gradient.isfinite().all()
    size = gradient.abs()
    assert torch.equal(
        size[:, :, 0], size[:, :, 1:].amax(dim=(1, 2, 3), keepdim=True)[:, :, 0].expand_as(size[:, :, 0])
    )
    with pytest.warns(UserWarning, match=NOT_FINITE):
        gradient = gradient_of(Around(lambda net, x: net(x + (x * 0).sqrt())), x)  # inf * 0
    assert (gradient == 0).all()


@pytest.mark.filterwarnings("ignore:the model.s input gradient was not finite")
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("spec", ["pgd-10", "fab-20", "fmn-20", "deepfool", "single-step", "mi-fgsm", "malt"])
def test_black_pixels_under_a_root_do_not_stop_an_attack(spec, norm):
    model = nn.Sequential(Around(lambda net, x: net(x.sqrt())))
    batch = interior_batch(LINEAR, SHAPE, 10)
    x = batch.x * (torch.arange(3) > 0)
    batch = Batch(x, model(x).argmax(dim=1), batch.index)
    attack = parse_spec(spec, registry.attack).make()
    x_adv = attack(model, batch, ThreatModel(norm, 0.5), generator=seeds.generator(torch.device("cpu"), 0))
    assert (model(x_adv).argmax(dim=1) != batch.y).sum() >= 8


def test_modules_in_train_mode_inside_of_a_module_in_eval_mode_stay_so():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Dropout(0.5), nn.Identity()), nn.Linear(9, 4)).eval()
    model[1][0].train()
    classifier = Classifier(model)
    assert list(classifier.random_modules) == ["1.0"]
    with frozen(classifier):
        assert [module.training for module in model.modules()] == [False, False, False, True, False, False]
        assert not torch.equal(classifier(IMAGES), classifier(IMAGES))
    assert model[1][0].training
    assert not model.training


def test_a_layer_whose_mode_makes_no_difference_is_not_reported():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(9, 4)).eval()
    model[2] = nn.Linear(9, 4)
    assert model[2].training
    assert Classifier(model).random_modules == {}
    model[1] = nn.Sequential(nn.Identity(), nn.BatchNorm1d(9), nn.ReLU())
    assert list(Classifier(model).random_modules) == ["1.1"]


def test_a_model_in_train_mode_is_put_into_eval_mode_as_a_whole():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(9), nn.Linear(9, 4)).train()
    model[2].eval()
    classifier = Classifier(model)
    with frozen(classifier):
        assert torch.equal(classifier(IMAGES), classifier(IMAGES))
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


@pytest.mark.parametrize(("call", "message"), [
    (lambda net, x: net(x)[:, :1], "one logit per image.*torch.cat"),
    (lambda net, x: (net(x), x), r"logits of shape \(5, classes\), not tuple"),
    (lambda net, x: net(x)[0], r"not shape \(4,\)"),
    (lambda *_: [][0], r"on images of shape \(5, 1, 3, 3\), failed at test_classifier.py:\d+: IndexError"),
])  # fmt: skip
def test_what_is_no_classifier_is_a_user_error_of_one_line(call, message):
    with pytest.raises(UserError, match=rf"\A.*{message}.*\Z"):
        Classifier(Around(call))(IMAGES)


def test_the_model_under_its_own_default_dtype():
    model = Around(lambda net, x: net(x.double() @ torch.eye(3)))
    model.double()
    torch.set_default_dtype(torch.float64)
    try:
        classifier = Classifier(model)
        torch.set_default_dtype(torch.float32)
        assert torch.allclose(classifier(IMAGES), LINEAR(IMAGES), atol=1e-6)
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_attacks_can_look_inside():
    classifier = as_classifier(as_classifier(LINEAR))
    assert classifier.model is LINEAR
    assert classifier[1] is LINEAR[1]
    assert as_classifier(Around(lambda net, x: net(x))).linear[1].weight.shape == (4, 9)
