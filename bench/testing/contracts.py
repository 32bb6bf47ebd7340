"""The tests that every registered entry must pass, as classes that a plugin inherits.

    import pytest
    from bench.testing.contracts import DefenseContract

    @pytest.mark.parametrize("name", ["my-defense"])
    class TestMine(DefenseContract): ...

Each test takes the name (or spec) of one entry. They are small, and run on the CPU. Those of certifiers are in
bench/testing/certifier_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import registry, seeds
from bench.core.config import TrainingConfig, as_json, make_config
from bench.core.contracts import Attack, Batch, Defense
from bench.core.foreign_attacks import make_attack
from bench.core.specs import parse_spec
from bench.core.threat import NORMS, ThreatModel, checked_norm
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.training.loop import Loop

CPU = torch.device("cpu")
SHAPE, CLASSES = (1, 8, 8), 10
EPS = {"Linf": 0.3, "L2": 2.0, "L1": 10.0}


def tiny_model() -> nn.Module:
    """A network with convolutions and batch norm, with random weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 8 * 8, CLASSES),
        )


def tiny_batch(n: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((n, *SHAPE), generator=generator)
    x[:1], x[1:2] = 0.0, 1.0  # the corners of the box
    with torch.no_grad():
        y = tiny_model().eval()(x).argmax(dim=1)  # right, so that there is something to attack
    return Batch(x, y, torch.arange(n))


def tiny_split(crop: int = 0) -> Split:
    data: Arrays = registry.dataset.get("fake")(shape=SHAPE, classes=CLASSES, train=40, test=20)
    return Split(data.x_train, data.y_train, CPU, crop=crop, flip=crop > 0)


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything that using a model must not change: tensors, gradients, modes and flags."""
    tensors = [value.clone() for value in model.state_dict().values()]
    parameters = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    return [tensors, parameters, [module.training for module in model.modules()]]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class AttackContract:
    """An attack stays inside the threat model, leaves the model alone, and depends on its seed only."""

    def each_norm(self, name: str) -> list[Attack]:
        spec = parse_spec(name, registry.attack)
        norms = getattr(spec.target, "norms", NORMS)  # a plain function has them all
        assert norms
        assert set(norms) <= set(NORMS)
        return [make_attack(spec, ThreatModel(norm, EPS[norm])) for norm in norms]

    def test_stays_inside_the_threat_model(self, name: str) -> None:
        for attack in self.each_norm(name):
            batch = tiny_batch()
            x_adv = attack(tiny_model(), batch, generator=seeds.generator(CPU, 0))
            assert x_adv.shape == batch.x.shape
            assert x_adv.dtype == torch.float32
            assert not x_adv.requires_grad
            if attack.minimum_norm:
                assert x_adv.min() >= 0
                assert x_adv.max() <= 1
            else:
                assert attack.threat.contains(x_adv, batch.x).all()

    def test_leaves_the_model_as_it_was(self, name: str) -> None:
        for attack in self.each_norm(name):
            model = tiny_model().train()
            next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
            next(model.parameters()).requires_grad_(False)
            before = fingerprint(model)
            attack(model, tiny_batch(), generator=seeds.generator(CPU, 0))
            assert same(before, fingerprint(model))

    def test_depends_on_its_seed_only(self, name: str) -> None:
        for attack in self.each_norm(name):
            runs: list[Tensor] = []
            for noise in (1, 2):
                torch.manual_seed(noise)  # the global generator must not matter
                runs.append(attack(tiny_model(), tiny_batch(), generator=seeds.generator(CPU, 0)))
            assert torch.equal(*runs)

    def test_takes_a_batch_of_one(self, name: str) -> None:
        for attack in self.each_norm(name):
            x_adv = attack(tiny_model(), tiny_batch(1), generator=seeds.generator(CPU, 0))
            assert x_adv.shape == (1, *SHAPE)

    def test_says_what_it_is(self, name: str) -> None:
        assert registry_target(registry.attack, name).__doc__


class DefenseContract:
    """A defense trains, keeps all its state in the trainer, and goes on from a checkpoint as if never stopped."""

    def make(self, name: str, **settings: Any) -> Defense[Any]:
        target = registry.defense.get(name)
        layers = {"epochs": 2, "batch_size": 16, "crop": 1, "validation": 0.0, "select": "last"}
        return target(make_config(target.config_class, name, layers, settings))

    def loop(self, name: str, norm: str | None = None, **settings: Any) -> Loop:
        defense = self.make(name, **settings)
        norm = norm or defense.norms[0]
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = defense.build(tiny_model())
        threat = ThreatModel(checked_norm(norm), EPS[norm])
        return Loop(model, defense, tiny_split(crop=1), threat, seed=0)

    def test_config_is_frozen_typed_and_survives_json(self, name: str) -> None:
        target = registry.defense.get(name)
        config = target.config_class()
        assert isinstance(config, TrainingConfig)
        assert config.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert make_config(target.config_class, name, as_json(config)) == config

    def test_trains_under_each_of_its_norms(self, name: str) -> None:
        for norm in registry.defense.get(name).norms:
            loop = self.loop(name, norm)
            trained = list(loop.defense.parameters(loop.model))
            before = [p.detach().clone() for p in trained]
            predictor, cost = loop.run()
            assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))
            assert cost.forwards > 0
            assert predictor(tiny_batch().x).shape == (6, CLASSES)
            assert not predictor.training

    def test_the_same_seed_gives_the_same_weights(self, name: str) -> None:
        first, second = (self.loop(name).run()[0].state_dict() for _ in range(2))
        assert same(list(first.values()), list(second.values()))

    def test_goes_on_from_a_checkpoint_bit_for_bit(self, name: str, tmp_path: Any) -> None:
        whole = self.loop(name, epochs=3).run()[0].state_dict()
        stopped = self.loop(name, epochs=3)
        stop_after(stopped, epochs=1)
        with suppress(Stopped):
            stopped.run(tmp_path)
        assert stopped.epoch == 1
        resumed = self.loop(name, epochs=3).run(tmp_path)[0].state_dict()
        assert same(list(whole.values()), list(resumed.values()))

    def test_leaves_no_gradient_behind(self, name: str) -> None:
        loop = self.loop(name)
        loop.run()
        assert all(p.grad is None for p in loop.model.parameters())

    def test_builds_the_same_model_from_the_same_config(self, name: str) -> None:
        shapes = [
            [(key, value.shape) for key, value in self.make(name).build(tiny_model()).state_dict().items()]
            for _ in range(2)
        ]
        assert shapes[0] == shapes[1]

    def test_has_evidence_or_says_that_it_has_none(self, name: str) -> None:
        assert "Evidence:" in (registry.defense.get(name).__doc__ or "")


class ModelContract:
    """An architecture is built from torch's layers and ours, takes images in [0,1], and names its first block."""

    shape = (3, 32, 32)

    def build(self, name: str) -> nn.Module:
        model = parse_spec(name, registry.model).make(self.shape, CLASSES)
        assert isinstance(model, nn.Module)
        return model

    def test_maps_images_to_logits(self, name: str) -> None:
        model = self.build(name).eval()
        with torch.no_grad():
            logits = model(torch.rand(2, *self.shape))
        assert logits.shape == (2, CLASSES)
        assert logits.isfinite().all()

    def test_answers_each_image_alone(self, name: str) -> None:
        model = self.build(name).eval()
        x = torch.rand((3, *self.shape), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-4)

    def test_is_built_from_known_layers(self, name: str) -> None:
        for module in self.build(name).modules():
            assert type(module).__module__.startswith(("torch.nn.modules", "bench.core.layers"))

    def test_names_its_first_block(self, name: str) -> None:
        assert hasattr(self.build(name), "stem")


class DatasetContract:
    """A data set is uint8 with labels 0 .. K-1, the same at each load."""

    data_dir: Any = None

    def load(self, name: str) -> Arrays:
        arrays = parse_spec(name, registry.dataset).make(self.data_dir)
        assert isinstance(arrays, Arrays)
        return arrays

    def test_has_uint8_images_and_a_label_for_each(self, name: str) -> None:
        arrays = self.load(name)
        for x, y in ((arrays.x_train, arrays.y_train), (arrays.x_test, arrays.y_test)):
            assert x.dtype == "uint8"
            assert x.ndim == 4
            assert len(x) == len(y)
            assert y.min() >= 0
            assert y.max() < arrays.classes

    def test_is_the_same_at_each_load(self, name: str) -> None:
        assert self.load(name).hash == self.load(name).hash


class Stopped(Exception):  # noqa: N818 (not an error: a test's way out of the loop)
    """Raised where a test stops a training."""


def stop_after(loop: Loop, epochs: int) -> None:
    """Make a loop raise Stopped in the middle of the epoch after `epochs`, as a kill would."""
    train_step: Callable[[Batch, Any], None] = loop.defense.train_step
    steps_left = epochs * loop.steps_per_epoch + 1

    def step(batch: Batch, trainer: Any) -> None:
        nonlocal steps_left
        train_step(batch, trainer)
        steps_left -= 1
        if steps_left == 0:
            raise Stopped

    loop.defense.train_step = step  # type: ignore[method-assign]


def registry_target(kind: registry.Registry, spec: str) -> Any:
    """The class behind a spec."""
    return parse_spec(spec, kind).target
