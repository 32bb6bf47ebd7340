import pytest
import torch

from bench.core.config import get_suite
from bench.core.devices import choose_threads, multiply_adds
from bench.core.errors import UserError
from bench.models.build import build_model

CIFAR, MNIST = (3, 32, 32), (1, 28, 28)


@pytest.mark.parametrize(("spec", "shape", "parameters"), [
    ("fc1", MNIST, 784 * 1024 + 1024 + 1024 * 10 + 10),
    ("cnn", MNIST, 16 * 16 + 16 + 32 * 16 * 16 + 32 + 1568 * 100 + 100 + 1010),
    ("lenet:width=2", MNIST, 4 * 25 + 4 + 8 * 4 * 25 + 8 + 392 * 128 + 128 + 1290),
    ("resnet18", CIFAR, 11_173_962),
    ("resnet34", CIFAR, 21_282_122),
    ("preact-resnet18", CIFAR, 11_172_170),  # with the last bn-relu of the paper
    ("wrn-28-10", CIFAR, 36_479_194),
    ("wrn-34-10", CIFAR, 46_160_474),
    ("vgg:width=16", CIFAR, 14_724_042),  # VGG-16 with batch norm and no bias in its convolutions
    ("resnet34:widths=23+25+27+29", CIFAR, 201_078 + 10),  # thesis, Table 5.6, whose last layer has no bias
    ("resnet34:widths=6+13+26+51", CIFAR, 216_360 + 10),
])  # fmt: skip
def test_parameters_are_as_published(spec, shape, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build_model(spec, shape, 10).parameters()) == parameters


@pytest.mark.parametrize(("spec", "parameters"), [
    ("imagenet-resnet18", 11_689_512), ("imagenet-resnet50", 25_557_032),
])  # fmt: skip
def test_the_imagenet_forms_have_1000_classes(spec, parameters):
    with torch.device("meta"):
        model = build_model(spec, (3, 224, 224), 1000)
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert model[:-3](torch.rand(1, 3, 224, 224)).shape[2:] == (7, 7)


def test_vgg_without_batch_norm_has_biases():
    model = build_model("vgg:width=1:batchnorm=false", CIFAR, 10)
    assert model.stem.bias is not None
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model)
    assert [module.out_channels for module in model if isinstance(module, torch.nn.Conv2d)] == [
        *[4] * 2, *[8] * 2, *[16] * 3, *[32] * 6,
    ]  # fmt: skip


@pytest.mark.parametrize(("widths", "printed", "with_norms"), [
    ("64+128+256+512", 21_265_088, False), ("23+25+27+29", 201_078, True), ("6+13+26+51", 216_360, True),
])  # fmt: skip
def test_networks_have_the_weights_of_table_5_6(widths, printed, with_norms):
    # the thesis counts the affine parameters of batch norm in the small networks, and not in RN34; never the last bias
    with torch.device("meta"):
        model = build_model(f"resnet34:widths={widths}", CIFAR, 10)
    counted = [
        p.numel() for name, p in model.named_parameters() if p.dim() > 1 or (with_norms and name != "output.bias")
    ]
    assert sum(counted) == printed


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_the_thesis_networks_take_three_activations(activation):
    for name in ("fc1", "cnn"):
        model = build_model(f"{name}:activation={activation}", MNIST, 10)
        assert activation in str(model).lower()


def test_normalisation_is_a_layer_of_the_model():
    model = build_model("resnet18:width=4:mean=0.5+0.5+0.5:std=0.2+0.2+0.5", CIFAR, 10)
    assert torch.allclose(model.normalize(torch.full((1, *CIFAR), 0.7))[0, :, 0, 0], torch.tensor([1.0, 1.0, 0.4]))


@pytest.mark.parametrize(
    "spec",
    [
        "resnet18:mean=0.5",
        "resnet18:mean=0.5:std=0",
        "cnn:activation=gelu",
        "resnet34:widths=1+2",
        "small-resnet:widths=8",
    ],
)
def test_impossible_options_are_one_line(spec):
    with pytest.raises(UserError):
        build_model(spec, CIFAR, 10)


def test_small_models_get_one_thread_and_large_ones_all():
    assert multiply_adds(build_model("fc1", MNIST, 10), MNIST) == 784 * 1024 + 10240
    assert choose_threads(build_model("cnn", MNIST, 10), MNIST) == 1
    assert multiply_adds(build_model("resnet18", CIFAR, 10), CIFAR) > 500e6


def test_the_network_of_cifar10_small_fits_a_cpu():
    suite = get_suite("cifar10-small")
    assert multiply_adds(build_model(suite.model, CIFAR, 10), CIFAR) < 1_500_000
    assert suite.dataset == "cifar10:train=10000:test=1000"


def test_a_scalar_output_has_the_logistic_loss():
    model = build_model("fc1:width=5:scalar=true", (1, 2, 2), 2)
    x, y = torch.rand(6, 1, 2, 2), torch.tensor([0, 1] * 3)
    f = model[:-1](x)
    assert f.shape == (6, 1)
    logistic = torch.nn.functional.softplus(-(2 * y - 1) * f.squeeze(1)).mean()
    assert torch.allclose(torch.nn.functional.cross_entropy(model(x), y), logistic)
    with pytest.raises(UserError, match="two classes"):
        build_model("mlp:scalar=true", (1, 2, 2), 3)
