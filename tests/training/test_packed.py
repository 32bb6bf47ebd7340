"""Packed networks: codes of masks, exact round trips, broken files, and sizes at the shapes of large networks."""

import hashlib
import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import main
from bench.core.config import as_json
from bench.core.errors import UserError
from bench.models.build import build_model
from bench.testing.contracts import CLASSES, SHAPE, DefenseContract, tiny_batch, tiny_model
from bench.training import mask_coding, packed_format
from bench.training.architecture import build_network, linear_layers
from bench.training.budgets import adaptive_budgets
from bench.training.checkpoints import BuildSpec, read_spec, save_weights
from bench.training.packed import load_packed, packed_bytes, packed_size, save_packed
from bench.training.rebuild import load_weights, make_defense, new_model

METHODS = [
    ("binary-subnet", {}), ("binary-subnet", {"rank": "magnitude", "gamma": 0.0, "r": 0.6}), ("rst", {"r": 0.8}),
    ("hydra", {}), ("hydra", {"binary": "true", "last_norm": "true"}), ("flyingbird", {}), ("bcs", {}),
    ("flyingbird", {"binary": "true"}), ("bcs", {"binary": "true"}), ("atmc", {"bits": 1}), ("pgd-at", {}),
    ("pgd-at", {"binary": "true"}),
]  # fmt: skip


@given(st.sets(st.integers(0, 3000), max_size=200))
def test_positions_come_back(places):
    sorted_places = np.array(sorted(places), np.int64)
    k, code = mask_coding.encode(sorted_places)
    assert np.array_equal(mask_coding.decode(code, k, len(places)), sorted_places)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5])
def test_random_masks_need_little_more_than_their_entropy(share):
    size = 200_000
    places = np.flatnonzero(np.random.default_rng(0).random(size) < share)
    _, code = mask_coding.encode(places)
    assert 1 <= 8 * len(code) / mask_coding.entropy_bits(size, len(places)) < 1.07


def test_the_entropy_of_a_mask_is_the_logarithm_of_their_number():
    assert mask_coding.entropy_bits(10, 3) == pytest.approx(math.log2(math.comb(10, 3)))
    assert mask_coding.entropy_bits(10, 10) == pytest.approx(0, abs=1e-9)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.25, -3.0]), min_size=1, max_size=60))
def test_weights_come_back(values):
    weight = np.array(values, np.float32)
    layer, data = packed_format.layer_bytes(weight)
    assert np.array_equal(packed_format.layer_weight(layer, data), weight)


def trained(name, settings, tmp_path):
    """A network of a short training, its spec and its packed file."""
    loop = DefenseContract().loop(name, epochs=1, **{"r": 0.9, **settings} if name != "pgd-at" else settings)
    model, _ = loop.run()
    spec = BuildSpec(model="x", shape=SHAPE, classes=CLASSES, defense=name, training=as_json(loop.config))
    path = tmp_path / "it.packed"
    save_packed(path, model, spec)
    return model, spec, path


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_the_same_network_is_loaded(name, settings, tmp_path):
    model, spec, path = trained(name, settings, tmp_path)
    assert read_spec(path) == spec
    defense = make_defense(spec)
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        other = build_network(defense, tiny_model(), CLASSES).eval()
    load_packed(other, path)
    for own, loaded in zip(linear_layers(model), linear_layers(other), strict=True):
        assert torch.equal(own.weight, loaded.weight)
    x = tiny_batch().x
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
    assert packed_bytes(other, spec) == path.read_bytes()


def signed(body):
    return body + hashlib.sha256(body).digest()


def changed(data, **changes):
    """The file with another header: fields of Header or, as a dict, of its first layer; with a valid checksum."""
    start = len(packed_format.MAGIC) + 4
    length = int.from_bytes(data[len(packed_format.MAGIC) : start], "little")
    header = msgspec.json.decode(data[start : start + length])
    if "layer" in changes:
        header["layers"][0] |= changes.pop("layer")
    text = msgspec.json.encode(header | changes)
    return signed(packed_format.MAGIC + len(text).to_bytes(4, "little") + text + data[start + length : -32])


BROKEN = {
    "empty": lambda _: b"",
    "another format": lambda data: b"PK" + data,
    "cut": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
    "longer header": lambda data: signed(packed_format.MAGIC + b"\xff\xff\xff\x7f" + data[12:-32]),
    "no JSON": lambda _: signed(packed_format.MAGIC + (3).to_bytes(4, "little") + b"{{{"),
    "unknown field": lambda data: changed(data, extra=1),
    "more kept than there are": lambda data: changed(data, layer={"kept": 10**9}),
    "fewer kept": lambda data: changed(data, layer={"kept": 1}),
    "another code": lambda data: changed(data, layer={"k": 9}),
    "negative": lambda data: changed(data, layer={"kept": -1}),
    "smaller layer": lambda data: changed(data, layer={"size": 8}),
    "three values": lambda data: changed(data, layer={"values": [1.0, 2.0, 3.0]}),
    "no rest": lambda data: changed(data, rest=0),
    "trailing bytes": lambda data: signed(data[:-32] + b"\0"),
    "weights that the method cannot have": lambda data: changed(data, layer={"values": [-1.0, 0.0]}),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_files_are_one_line(how, tmp_path):
    model, _, path = trained("binary-subnet", {}, tmp_path)
    path.write_bytes(BROKEN[how](path.read_bytes()))
    with pytest.raises(UserError) as caught:
        load_packed(model, path)
    assert "\n" not in str(caught.value)
    assert "it.packed" in str(caught.value)


def test_a_packed_file_of_another_model_is_one_line(tmp_path):
    _, _, path = trained("binary-subnet", {}, tmp_path)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(UserError, match="a different network"):
        load_packed(other, path)
    with pytest.raises(UserError, match="does not exist"):
        read_spec(tmp_path / "none.packed")


@pytest.mark.parametrize(("spec", "gamma"), [
    ("resnet34", 0.1), ("resnet34", 1.0), ("wrn-34-10", 0.1), ("wrn-34-10", 1.0),
])  # fmt: skip
def test_sizes_at_the_shapes_of_large_networks(spec, gamma):
    with torch.device("meta"):
        sizes = [layer.weight.numel() for layer in linear_layers(build_model(spec, (3, 32, 32), 10))]
    drawn, bits, bound = np.random.default_rng(0), 0, 0.0
    for size, kept in zip(sizes, adaptive_budgets(sizes, 0.01, gamma), strict=True):
        places = np.unique(drawn.choice(size, kept, replace=False)) if kept < size else np.arange(size)
        listed = places if 2 * kept <= size else np.setdiff1d(np.arange(size), places)
        bits += 8 * len(mask_coding.encode(listed)[1]) * (kept < size) + kept
        bound += mask_coding.entropy_bits(size, kept) + kept
    assert 1 <= bits / bound < 1.03


def test_the_command_packs_a_run_and_bench_eval_reads_the_file(tmp_path, capsys):
    spec = BuildSpec(
        model="small-cnn:width=4:hidden=16:batchnorm=true", shape=SHAPE, classes=CLASSES, defense="binary-subnet",
        training={"r": 0.9},
    )  # fmt: skip
    model = new_model(spec, 3).eval()
    save_weights(tmp_path / "weights.safetensors", model, spec)
    path = tmp_path / "net.packed"
    main(["pack", str(tmp_path), str(path)])
    assert "times the entropy" in capsys.readouterr().out
    loaded = new_model(spec, 4).eval()
    load_weights(loaded, path)
    x = tiny_batch().x
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))
    size = packed_size(model, spec)
    assert size.file == path.stat().st_size
    with pytest.raises(SystemExit):
        main(["pack", str(tmp_path), str(tmp_path / "net.bin")])
    assert ".packed" in capsys.readouterr().err
    main(["eval", "--checkpoint", str(path), "--attacks", "none", "--quiet", "--out", str(tmp_path / "runs")])
    assert "clean" in capsys.readouterr().out
