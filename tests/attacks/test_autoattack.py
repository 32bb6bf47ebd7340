import logging
import warnings
from contextlib import nullcontext

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import nn

from attacks import autoattack
from attacks.autoattack import AutoAttack
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.testing.contracts import tiny_batch, tiny_model
from tests.attacks.short_autoattack import shorten_autoattack
from tests.linear import linear_model

pytestmark = pytest.mark.usefixtures("short_autoattack")
CPU = torch.device("cpu")
THREAT = ThreatModel("Linf", 0.3)


@pytest.fixture
def short_autoattack(monkeypatch):
    shorten_autoattack(monkeypatch)


class Probabilities(nn.Sequential):
    def forward(self, x):
        return super().forward(x).softmax(dim=1)


def test_warnings_of_the_package_are_python_warnings():
    with pytest.warns(UserWarning, match="probability distribution"):
        AutoAttack()(Probabilities(tiny_model()), tiny_batch(), THREAT, generator=seeds.generator(CPU, 0))


def test_no_warning_for_logits_and_the_logger_is_restored():
    logger = logging.getLogger("auto-attack")
    before = logger.level, logger.propagate, list(logger.handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoAttack()(tiny_model(), tiny_batch(), THREAT, generator=seeds.generator(CPU, 0))
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_the_global_generator_is_restored():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    AutoAttack()(tiny_model(), tiny_batch(), THREAT, generator=seeds.generator(CPU, 0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("version", "classes", "works"), [
    ("standard", 3, False), ("standard", 4, True), ("rand", 2, False), ("rand", 3, True),
])  # fmt: skip
def test_too_few_classes_are_a_user_error(version, classes, works):
    model = linear_model((1, 2, 2), classes)
    x = torch.rand((3, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    batch = Batch(x, model(x).argmax(dim=1), torch.arange(3))
    attack = AutoAttack(version=version)
    if works:
        with warnings.catch_warnings(action="ignore"):  # the package speaks of a loss that version rand does not use
            assert attack(model, batch, THREAT, generator=seeds.generator(CPU, 0)).shape == x.shape
    else:
        with pytest.raises(UserError, match=f"at least {classes + 1} classes"):
            attack(model, batch, THREAT, generator=seeds.generator(CPU, 0))


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_the_package_s_square_is_run_on_the_sizes_on_which_it_works(norm):
    for size in [
        (4, 4),
        (8, 8),
        (9, 7),
        (12, 12),
        (14, 14),
        (18, 18),
        (24, 24),
        (28, 28),
        (28, 20),
        (20, 28),
        (48, 36),
    ]:
        model = linear_model((1, *size), 3)
        x = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(0))
        square = SquareAttack(model, norm=norm, n_queries=2, eps=1e-3)
        works = autoattack.can_tile(ThreatModel(norm, 1e-3), size)
        with nullcontext() if works else pytest.raises((RuntimeError, ZeroDivisionError)):
            square.perturb(x, model(x).argmax(dim=1))


def test_our_square_takes_the_place_of_the_package_s_with_a_warning():
    """A model without a gradient, which only a black-box attack breaks."""
    model = nn.Sequential(Rounded(), linear_model((1, 12, 12), 5))
    x = torch.rand((6, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    batch, threat = Batch(x, model(x).argmax(dim=1), torch.arange(6)), ThreatModel("L2", 6.0)
    with warnings.catch_warnings(record=True, action="always") as caught:
        x_adv = AutoAttack()(model, batch, threat, generator=seeds.generator(CPU, 0))
    assert any("12x12" in str(each.message) for each in caught)
    assert (model(x_adv).argmax(dim=1) != batch.y).any()


def test_our_square_is_not_run_if_all_examples_are_broken():
    model = nn.Sequential(Flattened(), linear_model((1, 12, 12), 5)[1])
    x = torch.rand((6, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    batch = Batch(x, model(x).argmax(dim=1), torch.arange(6))
    with pytest.warns(UserWarning, match="12x12"):
        x_adv = AutoAttack()(model, batch, ThreatModel("L2", 12.0), generator=seeds.generator(CPU, 0))
    assert (model(x_adv).argmax(dim=1) != batch.y).all()


class Flattened(nn.Module):
    """Fails for an empty batch, as `x.view(x.size(0), -1)` of many models does."""

    def forward(self, x):
        return x.view(x.size(0), -1)


class Rounded(nn.Module):
    """Images rounded to ten grey levels, which has no gradient."""

    def forward(self, x):
        return (10 * x).round() / 10


def test_its_progress_moves_inside_each_stage():
    """`ahead` counts examples of the batch: it rises within a stage, and never beyond the batch."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("bench.progress")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    batch, model = tiny_batch(), tiny_model()
    batch = Batch(batch.x, model(batch.x).argmax(dim=1), batch.index)
    try:
        AutoAttack()(model, batch, ThreatModel("Linf", 1e-3), generator=seeds.generator(CPU, 0))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    stages = [record.getMessage() for record in records]
    assert list(dict.fromkeys(stages)) == [f"running {name}" for name in ("apgd-ce", "apgd-t", "fab-t", "square")]
    ahead = [record.ahead for record in records]
    assert ahead == sorted(ahead)
    assert 0 == ahead[0] < ahead[-1] <= len(batch)
    assert all(len({a for a, s in zip(ahead, stages, strict=True) if s == stage}) > 2 for stage in set(stages))
