from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from bench.core.errors import UserError
from bench.models.build import build_model
from bench.training.checkpoints import BuildSpec, read_spec, read_state, save_weights
from bench.training.foreign_checkpoints import load_foreign
from bench.training.public_layouts import our_layer_names

SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 5), nn.Linear(5, 3))


def renamed(state, prefix="net.layer_"):
    """The tensors under other names, in the same order."""
    return {prefix + key.replace(".", "x.", 1): value for key, value in state.items()}


def agree(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_names_that_agree_need_no_mapping(tmp_path):
    torch.save(net(1).state_dict(), tmp_path / "a.pt")
    model = net()
    assert load_foreign(model, tmp_path / "a.pt") == {}
    assert agree(model, net(1))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_resnets_are_loaded(name, prefix, tmp_path):
    theirs = getattr(torchvision.models, name)(num_classes=4, width_per_group=64).eval()
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:  # batch norm that is not the identity
            tensor.uniform_(0.5, 1.5)
    torch.save({prefix + key: value for key, value in theirs.state_dict().items()}, tmp_path / "a.pt")
    model = build_model(f"imagenet-{name}", (3, 64, 64), 4).eval()
    mapping = load_foreign(model, tmp_path / "a.pt")
    assert mapping["stage2.0.0.shortcut.1.running_var"] == f"{prefix}layer2.0.downsample.1.running_var"
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(model(x), theirs(x), atol=1e-4)


class WideBlock(nn.Module):
    """A block of the wide ResNets of TRADES, under its names of layers."""

    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.keeps = channels_in == channels_out
        self.convShortcut = None if self.keeps else nn.Conv2d(channels_in, channels_out, 1, stride, 0, bias=False)

    def forward(self, x):
        active = self.bn1(x).relu()
        return self.conv2(self.bn2(self.conv1(active)).relu()) + (x if self.keeps else self.convShortcut(active))


class WideResNet(nn.Module):
    """WRN-28-1 with the names of TRADES."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for number, (before, after, stride) in enumerate([(16, 16, 1), (16, 32, 2), (32, 64, 2)], start=1):
            blocks = [WideBlock(before, after, stride), *(WideBlock(after, after, 1) for _ in range(3))]
            self.add_module(f"block{number}", nn.ModuleDict({"layer": nn.Sequential(*blocks)}))
        self.bn1, self.fc = nn.BatchNorm2d(64), nn.Linear(64, 4)

    def forward(self, x):
        x = self.conv1(x)
        for number in (1, 2, 3):
            x = self.get_submodule(f"block{number}")["layer"](x)
        return self.fc(self.bn1(x).relu().mean((2, 3)))


def test_wide_resnets_of_trades_are_loaded(tmp_path):
    theirs = WideResNet().eval()
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "a.pt")
    model = build_model("wrn-28-10:widen=1", (3, 32, 32), 4).eval()
    load_foreign(model, tmp_path / "a.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(x), theirs(x), atol=1e-4)


def test_names_of_other_layouts_are_not_guessed():
    assert our_layer_names(["conv1", "layer1.0.bn1", "layer1.0.conv1", "layer1.0.other", "linear"]) == {}
    assert our_layer_names(["stem", "output"]) == {}


@pytest.mark.parametrize("wrap", [
    renamed,
    lambda state: {"state_dict": renamed(state), "epoch": 3},
    lambda state: {f"module.{key}": value for key, value in renamed(state).items()},
    lambda state: {key: value for key, value in renamed(state).items() if "num_batches" not in key},
])  # fmt: skip
def test_other_names_are_matched_in_order(wrap, tmp_path):
    torch.save(wrap(net(1).state_dict()), tmp_path / "a.ckpt")
    model = net()
    mapping = load_foreign(model, tmp_path / "a.ckpt")
    assert mapping["0.weight"].removeprefix("module.") == "net.layer_0x.weight"
    assert len(mapping) == 10
    assert torch.equal(model[4].weight, net(1)[4].weight)
    assert torch.equal(model[1].running_var, net(1)[1].running_var)


def test_safetensors_are_matched_by_shape_where_no_two_layers_look_alike(tmp_path):
    save_file(renamed(net(1).state_dict(), prefix="z"), tmp_path / "a.safetensors")
    model = net()
    load_foreign(model, tmp_path / "a.safetensors")
    assert agree(model, net(1))


def twins():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def swap_kinds(state):
    """Layers whose weight and bias changed places."""
    return {key.replace("weight", "?").replace("bias", "weight").replace("?", "bias"): v for key, v in state.items()}


WRONG = {
    "another shape": (
        lambda s: renamed(s) | {"net.layer_4x.weight": torch.zeros(3, 6)},
        "0 layers of bias (3,), weight (3, 6)",
    ),
    "too few layers": (lambda s: dict(list(renamed(s).items())[:4]), "layers with weights"),
    "another shape under our names": (lambda s: s | {"4.weight": torch.zeros(3, 6)}, "is (3, 6)"),
    "other kinds of tensors": (lambda s: renamed({k: v for k, v in s.items() if k != "3.bias"}), "weight"),
    "some names in common": (lambda s: {k.replace("4.", "last."): v for k, v in s.items()}, "shares some layer names"),
    "not finite": (lambda s: s | {"0.weight": s["0.weight"] * float("nan")}, "finite"),
    "whole numbers": (lambda s: s | {"0.weight": s["0.weight"].long()}, "floating-point"),
    "two state dicts": (lambda s: {"model": s, "ema": s}, "holds 2 state dicts ('model', 'ema'); choose one with"),
    "no tensors": (lambda _: {"epoch": 3}, "holds 0 state dicts"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_one_line(case, tmp_path):
    change, hint = WRONG[case]
    torch.save(change(dict(net(1).state_dict())), tmp_path / "a.pt")
    with pytest.raises(UserError) as error:
        load_foreign(net(), tmp_path / "a.pt")
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_one_of_several_state_dicts_is_chosen_by_its_key(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"model": net(1).state_dict(), "ema": net(2).state_dict(), "epoch": 3}, path)
    for key, seed in (("model", 1), ("ema", 2)):
        model = net()
        load_foreign(model, path, key)
        assert agree(model, net(seed))
    with pytest.raises(UserError, match="no state dict 'swa'; it holds 'model', 'ema'"):
        load_foreign(net(), path, "swa")
    torch.save(net(1).state_dict(), path)
    with pytest.raises(UserError, match="no state dict 'ema'; it holds none by name"):
        load_foreign(net(), path, "ema")
    save_file(net(1).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="leave out --state-dict ema"):
        load_foreign(net(), tmp_path / "a.safetensors", "ema")


def test_layers_that_look_alike_are_refused_where_there_is_no_order(tmp_path):
    save_file(renamed(twins().state_dict()), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="equal shapes"):
        load_foreign(twins(), tmp_path / "a.safetensors")
    torch.save(renamed(twins().state_dict()), tmp_path / "a.pt")  # in a state dict the order tells them apart
    load_foreign(twins(), tmp_path / "a.pt")


def hidden_twice():
    return nn.Sequential(
        OrderedDict(stem=nn.Linear(4, 3), fc3=nn.Linear(3, 3), fc2=nn.Linear(3, 3), out=nn.Linear(3, 2))
    )


def forward_order():
    layers = dict(hidden_twice().named_children())
    return nn.Sequential(OrderedDict((name, layers[name]) for name in ("stem", "fc2", "fc3", "out")))


PREFIXES = ["", "model.", "module.", "net.module.", "_orig_mod.module.", "module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_names_decide_even_if_shapes_are_repeated_and_the_order_is_another(prefix, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    state = {prefix + key: value for key, value in hidden_twice().state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = forward_order()
    assert load_foreign(model, path) == {}
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key.removeprefix(prefix)], value)


def test_a_prefix_of_our_names_does_not_count(tmp_path):
    torch.save(hidden_twice().state_dict(), tmp_path / "a.pt")
    model = nn.Sequential(OrderedDict(body=forward_order()))
    assert load_foreign(model, tmp_path / "a.pt") == {}
    load_foreign(forward_order(), tmp_path / "a.pt")


@pytest.mark.parametrize(("names", "loads"), [
    (("l0", "l1", "l2", "l3"), True), (("a.0.fc", "b.2.fc", "b.10.fc", "c"), True),
    (("l0", "l2", "l1", "l3"), False), (("in", "left", "right", "out"), False), (("stem", "a1", "a2", "b"), False),
])  # fmt: skip
def test_layers_of_equal_shapes_under_other_names_need_ascending_numbers(names, loads, tmp_path):
    state = forward_order().state_dict()
    by_name = dict(zip(("stem", "fc2", "fc3", "out"), names, strict=True))
    renamed = {f"{by_name[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state.items()}
    torch.save(renamed, tmp_path / "a.pt")
    model = forward_order()
    if loads:
        load_foreign(model, tmp_path / "a.pt")
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    else:
        with pytest.raises(UserError, match=r"\A.*(equal shapes \(|shares some layer names).*\Z"):
            load_foreign(model, tmp_path / "a.pt")


def test_our_layers_of_equal_shapes_need_numbers_too(tmp_path):
    torch.save(renamed(twins().state_dict()), tmp_path / "a.pt")
    model = nn.Sequential(OrderedDict(second=nn.Linear(4, 4), first=nn.Linear(4, 4)))
    with pytest.raises(UserError, match="equal shapes"):
        load_foreign(model, tmp_path / "a.pt")


def test_shapes_decide_where_no_name_agrees(tmp_path):
    torch.save(renamed(dict(reversed(net(1).state_dict().items()))), tmp_path / "a.pt")
    model = net()
    load_foreign(model, tmp_path / "a.pt")
    assert agree(model, net(1))


@pytest.mark.parametrize(("thing", "name"), [
    (np.float64(0.9), "numpy._core.multiarray.scalar"), (Namespace(lr=0.1), "argparse.Namespace"),
])  # fmt: skip
@pytest.mark.parametrize("new_format", [True, False])
def test_what_a_file_holds_beside_tensors_is_named(thing, name, new_format, tmp_path):
    torch.save(
        {"state_dict": net().state_dict(), "x": thing}, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format
    )
    with pytest.raises(UserError, match=rf"it holds {name.replace('_core', '_?core')}, and only tensors"):
        read_state(tmp_path / "a.pt")


class Bomb:
    def __reduce__(self):
        return (Path("exploded").write_text, ("boom",))


@pytest.mark.parametrize("content", ["bomb", "garbage", "empty"])
def test_a_file_that_is_no_plain_state_is_refused_and_never_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content == "bomb":
        torch.save({"a": Bomb()}, "a.pt")
    else:
        Path("a.pt").write_bytes(b"\x80garbage" if content == "garbage" else b"")
    with pytest.raises(UserError, match=r"cannot be read"):
        read_state(Path("a.pt"))
    assert not Path("exploded").exists()


def test_our_own_weights_carry_what_builds_them(tmp_path):
    spec = BuildSpec(model="cnn", shape=(1, 8, 8), classes=10, defense="atas", training={"alpha": "0.25eps"})
    path = tmp_path / "weights.safetensors"
    save_weights(path, net(), spec)
    assert read_spec(path) == spec
    first = path.read_bytes()
    save_weights(path, net(), spec)
    assert path.read_bytes() == first  # so that a hash of it means something


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the published checkpoints are not beside this checkout")
def test_the_published_checkpoints_load():
    for path in sorted(SHARED.glob("*.ckpt")):
        data, architecture = path.stem.split("_")[:2]
        model = build_model(architecture, (3, 32, 32) if data == "cifar" else (1, 28, 28), 10)
        mapping = load_foreign(model, path)
        assert mapping["output.weight"] == "output.layer.weight"
