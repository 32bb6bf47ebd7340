"""Proofs as they are written (certifiers/proofs.py), and the bounds that the checker derives from them."""

import os
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.core.example_table import Threat
from bench.core.proof_format import decode, leaves_of
from bench.core.threat import NORMS, TOLERANCE, ThreatModel
from certifiers.graph import apply
from certifiers.input_regions import region_of
from certifiers.interval_bounds import interval_margins
from certifiers.linear_bounds import BoundedNetwork
from certifiers.network import Network
from certifiers.network_description import described_network
from certifiers.proofs import (
    ProofBuilder,
    SplitTree,
    can_prove,
    codes_of,
    interval_proof,
    round_multipliers,
    round_slopes,
    rule_proof,
    slopes_of,
)
from leaderboard.recheck import regions
from leaderboard.recheck.affine import Affine
from leaderboard.recheck.bounds import Relaxation
from leaderboard.recheck.network import Network as Checked
from leaderboard.recheck.network import Rectifier
from leaderboard.recheck.proofs import Column, Derivation
from leaderboard.recheck.regions import Region
from tests import networks as random_networks
from tests.networks import CURVES, LAYERS, images, networks, networks_with, points

NETWORKS = int(os.environ.get("PROOF_NETWORKS", "4"))  # of each kind
PIECEWISE = [layer for layer in LAYERS if layer not in CURVES or layer in ("hardtanh", "extremes", "falling leaky")]
some = settings(max_examples=NETWORKS, deadline=None, derandomize=True, database=None)


def checked(model, x):
    """A model as the checker reads it."""
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    return Checked(described_network(model, x[:1]), state)


def derived(network, data, x, threat):
    """The derivation of a proof, its leaves for each class, and their bounds, of an image (1,C,H,W)."""
    proof = decode(data)
    derivation = Derivation(network, proof, Region.around(x.numpy().ravel(), Threat(threat.norm, threat.eps)))
    columns = [Column(j, leaf) for tree in proof.trees for leaf in leaves_of(tree) for j in tree.classes]
    return derivation, columns, derivation.bounds_of(proof.label, columns)


class Draw:
    """Random slopes, bounds and trees for a network, without any sense."""

    def __init__(self, network, label, seed):
        self.network, self.label = network, label
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.builder = ProofBuilder(network, label)

    def assignment(self, count):
        return self.builder.slopes({k: self.line(k) for k in self.network.activations[:count]})

    def line(self, k):
        if self.random.random() < 0.3:
            return str(self.random.choice(["parallel", "adaptive"]))
        shape = self.network.nodes[k].shape
        codes = torch.randint(256, shape, generator=self.generator, dtype=torch.uint8)
        return slopes_of(self.network.activation(k), codes, self.network.image)

    def units(self, position, k):
        """Some units of activation k, and slopes for the lower and the upper bound of each."""
        size = int(np.prod(self.network.nodes[k].shape))
        units = torch.from_numpy(self.random.choice(size, min(3, size), replace=False))
        slopes = []
        for _ in range(2):
            slopes.append({})
            for j in self.network.activations[:position]:
                shape = (len(units), *self.network.nodes[j].shape)
                codes = torch.randint(256, shape, generator=self.generator, dtype=torch.uint8)
                slopes[-1][j] = slopes_of(self.network.activation(j), codes, self.network.image)
        return units, *slopes

    def tree(self, target):
        tree, activations = SplitTree([target]), self.network.activations
        waiting = [(0, [])]
        while waiting:
            node, path = waiting.pop()
            if len(path) < 2 and activations and self.random.random() < 0.6:
                k = int(self.random.integers(len(activations)))
                unit = int(self.random.integers(np.prod(self.network.nodes[activations[k]].shape)))
                if (k, unit) not in path:
                    waiting += [(child, [*path, (k, unit)]) for child in tree.split(node, k, unit)]
                    continue
            multipliers = self.random.exponential(0.3, len(path)) * (self.random.random(len(path)) < 0.8)
            tree.close(node, self.assignment(len(activations)), multipliers.tolist())
        return tree

    def proof(self):
        for position, k in enumerate(self.network.activations):
            for _ in range(int(self.random.integers(3))):
                both = self.assignment(position), self.assignment(position)
                self.builder.bounds(k, *both, intersect=bool(self.random.integers(2)))
            if position and self.random.random() < 0.5:
                self.builder.bounds_of_units(k, *self.units(position, k))
        for target in range(self.network.classes):
            if target != self.label:
                self.builder.prove_by_splits(self.tree(target))
        return self.builder.encoded()


def check_no_point_is_below(case, norm, eps, seed):
    model, shape, _ = case
    model.requires_grad_(False)
    x, threat = images(shape, 1, seed), ThreatModel(norm, eps)
    network, label = Network(model, x), int(model(x).argmax())
    assert can_prove(network)
    network_checked = checked(model, x)
    found = points(model, x, torch.tensor([label]), threat, 60, seed)[:, 0]
    outputs = [found]
    for node in network.nodes[1:]:
        outputs.append(apply(node.layer, [outputs[k] for k in node.inputs]))
    logits = outputs[-1].numpy()
    slack = 1e-10 * (1 + np.abs(logits).max())
    assert np.abs(network_checked.logits(found.numpy()) - logits).max() < slack
    inputs = [outputs[network.nodes[k].inputs[0]].flatten(1).numpy() for k in network.activations]
    derivation, columns, bounds = derived(network_checked, Draw(network, label, seed).proof(), x, threat)
    for z, relaxation in zip(inputs, derivation.relaxations, strict=True):
        assert np.all(relaxation.low <= z + slack)
        assert np.all(z <= relaxation.high + slack)
    for column, bound in zip(columns, bounds, strict=True):
        value = logits[:, label] - logits[:, column.target]
        inside = np.ones(len(value), dtype=bool)
        for (k, unit, sign), multiplier in zip(column.leaf.path, column.leaf.multipliers, strict=True):
            value = value - sign * multiplier * inputs[k][:, unit]
            inside &= sign * inputs[k][:, unit] >= 0
        assert np.all(bound <= value[inside] + slack)


@pytest.mark.parametrize("layer", [None, *PIECEWISE])
def test_no_bound_of_a_random_proof_exceeds_a_value_in_its_leaf(layer, monkeypatch):
    monkeypatch.setitem(random_networks.ACTIVATIONS, "sigmoid", nn.ReLU)
    monkeypatch.setitem(random_networks.ACTIVATIONS, "tanh", lambda: nn.Threshold(0.2, 0.2))

    @some
    @given(
        networks() if layer is None else networks_with(layer),
        st.sampled_from(NORMS), st.sampled_from([1e-3, 0.05, 0.3]), st.integers(0, 99),
    )  # fmt: skip
    def check(case, norm, eps, seed):
        check_no_point_is_below(case, norm, eps, seed)

    check()


def small(seed, *, widths=(8, 6, 6, 3)):
    """A network of two hidden layers on images of two pixels by four, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after).double(), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.7)
    return model, images((1, 2, 4), 1, seed)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rule", ["parallel", "adaptive", "ibp"])
def test_the_bounds_are_those_of_the_certifiers(norm, rule):
    for seed in range(5):
        model, x = small(seed)
        threat = ThreatModel(norm, 0.1)
        network, y = Network(model, x), model(x).argmax(dim=1)
        label = int(y)
        if rule == "ibp":
            data, margins = interval_proof(network, label), interval_margins(network, region_of(x, threat), y)
            expected = margins[margins.isfinite()]
        else:
            data = rule_proof(network, label, rule)
            expected = BoundedNetwork(network, rule).bound(region_of(x, threat), y).margin[0]
        _, _, bounds = derived(checked(model, x), data, x, threat)
        assert bounds == pytest.approx(expected.numpy(), abs=1e-9)
        assert np.all(bounds <= expected.numpy())


def test_a_bound_of_a_linear_function_is_just_below_the_exact_one():
    assert regions.TOLERANCE == TOLERANCE
    random = np.random.default_rng(0)
    x, scale = random.random(50), 10.0 ** random.integers(-8, 9, 50)
    forms = (random.standard_normal(50) * scale)[:, None]
    for norm in NORMS:
        region = Region.around(x, Threat(norm, 0.1))
        (bound,) = region.minimum(forms)
        c = [Fraction(float(each)) for each in forms[:, 0]]
        eps = Fraction(0.1) * (1 + Fraction(TOLERANCE))
        pixels = [Fraction(float(each)) for each in x]
        size = sum(map(abs, c))
        if norm == "Linf":
            exact = sum(a * (max(p - eps, 0) if a > 0 else min(p + eps, 1)) for a, p in zip(c, pixels, strict=True))
        else:
            whole = sum(a for a in c if a < 0)
            dual = max(map(abs, c)) if norm == "L1" else Fraction(float(np.linalg.norm(forms)))
            exact = max(whole, sum(a * p for a, p in zip(c, pixels, strict=True)) - eps * dual)
        assert Fraction(float(bound)) <= exact + (size * Fraction(1, 2**52) if norm == "L2" else 0)
        assert exact - Fraction(float(bound)) < size * Fraction(1, 10**12)


def test_the_chord_encloses_the_activation_in_exact_arithmetic():
    random = np.random.default_rng(0)
    low, high = (sign * 10.0 ** random.uniform(-9, 9, 2000) for sign in (-1, 1))
    leak = random.choice([0.0, 0.1, -1.0, 1.0, 1.7], 2000)
    z = Affine({}, np.zeros(2000), np.zeros(2000))
    chord = Relaxation.within(low, high, Rectifier(z, leak, 0))
    for ends in zip(low, high, chord.slope, chord.bias, leak, strict=True):
        l, u, s, t, a = (Fraction(float(each)) for each in ends)  # noqa: E741 -- as in bounds.py
        above = s * l + t - a * l, s * u + t - u
        assert min(above) >= 0 if a <= 1 else max(above) <= 0
        assert max(map(abs, above)) < Fraction(1, 10**13) * (u - l)


def test_large_weights_do_not_make_the_bound_too_large():
    """Two layers whose products cancel: exact arithmetic gives 1/2 for the margin at every image."""
    large = 2.0**40
    first, second = nn.Linear(1, 2).double(), nn.Linear(2, 2).double()
    first.weight.data, first.bias.data = torch.tensor([[large], [large]]).double(), torch.zeros(2).double()
    second.weight.data = torch.tensor([[large, -large], [0.0, 0.0]]).double()
    second.bias.data = torch.tensor([0.5, 0.0]).double()
    model, x = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second), torch.full((1, 1, 1, 1), 0.3).double()
    data = rule_proof(Network(model, x), 0, "parallel")
    _, _, (bound,) = derived(checked(model, x), data, x, ThreatModel("Linf", 0.1))
    assert -(2.0**40) < bound <= 0.5
    assert bound < 0  # the rounding error is larger than the margin, so that nothing is proven


def test_slopes_and_multipliers_are_rounded_to_what_a_proof_holds():
    network = Network(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LeakyReLU(0.2), nn.Linear(3, 2)), torch.rand(1, 1, 2, 2)
    )
    leaky = network.activation(network.activations[0])
    slopes = torch.tensor([0.2, 0.6001, 1.0])
    assert codes_of(leaky, slopes).tolist() == [0, 128, 255]
    rounded = round_slopes(leaky, slopes)
    assert rounded.tolist() == pytest.approx([0.2, 0.2 + 0.8 * 128 / 255, 1.0])
    assert torch.equal(round_slopes(leaky, rounded), rounded)
    assert round_multipliers(torch.tensor([-1.0, 0.1, 1e9])).tolist() == [0.0, pytest.approx(0.1, rel=1e-3), 65504.0]


def test_a_tree_needs_a_proof_of_every_leaf():
    tree = SplitTree([1])
    below, above = tree.split(0, 0, 3)
    tree.close(below, 0, [0.5])
    with pytest.raises(KeyError):
        tree.tree()
    tree.close(above, 2, [0.0])
    assert tree.tree().splits == [0, 3, -1, -1]
    assert tree.tree().slopes == [0, 2]
