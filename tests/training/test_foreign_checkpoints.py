from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench.core.errors import UserError
from bench.models.build import build_model
from bench.training.checkpoints import BuildSpec, read_spec, read_state, save_weights
from bench.training.foreign_checkpoints import load_foreign

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
    assert mapping["0.weight"] == "net.layer_0x.weight"
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
    "another shape": (lambda s: renamed(s) | {"net.layer_4x.weight": torch.zeros(3, 6)}, "is (3, 6)"),
    "too few layers": (lambda s: dict(list(renamed(s).items())[:4]), "layers with weights"),
    "layers in another order": (lambda s: renamed(dict(reversed(s.items()))), "does not fit"),
    "other kinds of tensors": (lambda s: renamed({k: v for k, v in s.items() if k != "3.bias"}), "weight"),
    "some names in common": (lambda s: {k.replace("4.", "last."): v for k, v in s.items()}, "shares some layer names"),
    "not finite": (lambda s: s | {"0.weight": s["0.weight"] * float("nan")}, "finite"),
    "whole numbers": (lambda s: s | {"0.weight": s["0.weight"].long()}, "floating-point"),
    "two state dicts": (lambda s: {"a": s, "b": s}, "holds 2 state dicts"),
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


def test_layers_that_look_alike_are_refused_where_there_is_no_order(tmp_path):
    save_file(renamed(twins().state_dict()), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="equal shapes"):
        load_foreign(twins(), tmp_path / "a.safetensors")
    torch.save(renamed(twins().state_dict()), tmp_path / "a.pt")  # in a state dict the order tells them apart
    load_foreign(twins(), tmp_path / "a.pt")


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
