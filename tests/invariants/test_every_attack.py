"""Every attack, under each norm that it supports, in random configurations."""

from typing import Literal, get_args, get_origin

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from bench.core import registry, seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.specs import options_of
from bench.core.threat import ThreatModel
from bench.testing.contracts import fingerprint, same
from tests.attacks.short_autoattack import shorten_autoattack

CPU = torch.device("cpu")
EPS = {"Linf": (1e-3, 1.0), "L2": (1e-2, 5.0), "L1": (1e-2, 20.0)}
COUNTS = {"steps", "restarts", "queries", "targets", "samples", "search_steps"}
NEEDS_A_RUN = {"transfer"}
CASES = [
    (name, norm)
    for name in registry.attack.names()
    if name not in NEEDS_A_RUN
    for norm in registry.attack.get(name).norms
]


def a_model(shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """A small network with random batch statistics, modules in different modes, and a frozen weight."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(shape[0], 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3 * shape[1] * shape[2], classes),
        )
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    model[4].bias.requires_grad_(False)
    model[3].eval()
    return model


@st.composite
def configurations(draw, name, norm):
    """An attack, a threat model, a network, a batch and a seed."""
    options = {}
    for option, (hint, _) in options_of(registry.attack.get(name)).items():
        if option in COUNTS:
            options[option] = draw(st.integers(1, 4))
        elif hint is bool:
            options[option] = draw(st.booleans())
        elif get_origin(hint) is Literal:
            options[option] = draw(st.sampled_from(get_args(hint)))
    threat = ThreatModel(norm, draw(st.floats(*EPS[norm])))
    shape = draw(st.sampled_from([(1, 8, 8), (3, 6, 5), (1, 1, 4), (2, 1, 1)]))
    classes = draw(st.sampled_from([2, 3, 4, 10]))
    n, seed = draw(st.integers(1, 4)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((n, *shape), generator=generator)
    x[0] = x[0].round()  # a corner of the box
    batch = Batch(x, torch.randint(classes, (n,), generator=generator), torch.arange(n))
    return registry.attack.get(name)(**options), threat, a_model(shape, classes, seed), batch, seed


def check_invariants(name, norm, examples):
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(configurations(name, norm))
    def check(configuration):
        attack, threat, model, batch, seed = configuration
        try:
            attack.check_fits(threat, tuple(batch.x.shape[1:]), model[4].out_features)
        except UserError:
            return  # a clear refusal is enough
        before, x = fingerprint(model), batch.x.clone()
        x_adv = attack(model, batch, threat, generator=seeds.generator(CPU, seed))
        assert same(before, fingerprint(model))
        assert torch.equal(batch.x, x)
        assert x_adv.shape == x.shape
        assert not x_adv.requires_grad
        if attack.minimum_norm:
            assert x_adv.isfinite().all()
            assert x_adv.min() >= 0
            assert x_adv.max() <= 1
        else:
            assert threat.contains(x_adv, x).all()
        torch.manual_seed(seed + 1)  # the global generator must not matter
        assert torch.equal(attack(model, batch, threat, generator=seeds.generator(CPU, seed)), x_adv)

    check()


@pytest.fixture(autouse=True)
def _short_autoattack(monkeypatch):
    shorten_autoattack(monkeypatch)


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if case[0] != "bracket-attack"])
def test_stays_within_the_threat_model_and_depends_only_on_its_seed(name, norm):
    check_invariants(name, norm, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the package's Square fails on")
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_holds_in_many_configurations(name, norm):
    check_invariants(name, norm, 4 if name == "bracket-attack" else 15)  # it runs thousands of queries
