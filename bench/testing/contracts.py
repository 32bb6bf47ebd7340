"""The contracts of attacks, defenses, models and data sets, and the tiny network and images that they use."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import registry, seeds
from bench.core.attack_specs import make_attacks
from bench.core.config import TrainingConfig, as_json, make_config
from bench.core.contracts import Attack, Batch, Defense
from bench.core.specs import parse_spec
from bench.core.threat import NORMS, ThreatModel, parse_norm
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.training.architecture import build_network
from bench.training.loop import Loop

CPU = torch.device("cpu")
SHAPE, CLASSES = (1, 8, 8), 10
EPS = {"Linf": 0.3, "L2": 2.0, "L1": 10.0}


def tiny_model() -> nn.Module:
    """A network with convolutions and batch norm, with random weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        features = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*features, nn.Linear(4 * 8 * 8, CLASSES))


def tiny_batch(n: int = 6) -> Batch:
    """Images that the tiny model classifies correctly."""
    return batch_of(tiny_model().eval(), SHAPE, n)


def batch_of(model: nn.Module, shape: tuple[int, ...], n: int) -> Batch:
    """Images of `shape`, the first two of them corners of the box, with the labels that the model predicts."""
    x = torch.rand((n, *shape), generator=torch.Generator().manual_seed(1))
    x[:1], x[1:2] = 0.0, 1.0
    with torch.no_grad():
        return Batch(x, model(x).argmax(dim=1), torch.arange(n))


def tiny_split(crop: int = 0) -> Split:
    data: Arrays = registry.dataset.get("fake")(shape=SHAPE, classes=CLASSES, train=40, test=20)
    return Split(data.x_train, data.y_train, CPU, crop=crop, flip=crop > 0)


def fingerprint(model: nn.Module) -> list[Any]:
    """The state of a model that an attack must not change: tensors, gradients, modes and flags."""
    tensors = [value.clone() for value in model.state_dict().values()]
    parameters = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    return [tensors, parameters, [module.training for module in model.modules()]]


def same(a: Any, b: Any) -> bool:
    """Equality of nested lists of tensors."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class AttackContract:
    """An attack stays within the threat model, does not change the model, and depends only on its seed."""

    def attacks(self, name: str) -> Iterator[tuple[Attack, ThreatModel]]:
        """The attack under each of its norms."""
        norms = getattr(parse_spec(name, registry.attack).target, "norms", NORMS)  # a plain function supports all
        assert norms
        for norm in norms:
            (planned,) = make_attacks([name], ThreatModel(parse_norm(norm), EPS[norm])).values()
            yield planned.attack, planned.threat

    def test_stays_within_the_threat_model(self, name: str) -> None:
        for attack, threat in self.attacks(name):
            batch = tiny_batch()
            x_adv = attack(tiny_model(), batch, threat, generator=seeds.generator(CPU, 0))
            assert x_adv.shape == batch.x.shape
            assert x_adv.dtype == torch.float32
            assert not x_adv.requires_grad
            assert 0 <= x_adv.min() <= x_adv.max() <= 1
            assert attack.minimum_norm or threat.contains(x_adv, batch.x).all()

    def test_does_not_change_the_model(self, name: str) -> None:
        for attack, threat in self.attacks(name):
            model = tiny_model().train()
            next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
            next(model.parameters()).requires_grad_(False)
            before = fingerprint(model)
            attack(model, tiny_batch(), threat, generator=seeds.generator(CPU, 0))
            assert same(before, fingerprint(model))

    def test_depends_only_on_its_seed(self, name: str) -> None:
        for attack, threat in self.attacks(name):
            points: list[Tensor] = []
            for global_seed in (1, 2):
                torch.manual_seed(global_seed)
                points.append(attack(tiny_model(), tiny_batch(), threat, generator=seeds.generator(CPU, 0)))
            assert torch.equal(*points)

    def test_accepts_a_batch_of_one(self, name: str) -> None:
        for attack, threat in self.attacks(name):
            x_adv = attack(tiny_model(), tiny_batch(1), threat, generator=seeds.generator(CPU, 0))
            assert x_adv.shape == (1, *SHAPE)

    def test_has_a_docstring(self, name: str) -> None:
        assert parse_spec(name, registry.attack).target.__doc__


class DefenseContract:
    """A defense trains, keeps all its state in the trainer, and resumes from a checkpoint bit for bit."""

    def make(self, name: str, **settings: Any) -> Defense[Any]:
        target = registry.defense.get(name)
        layers = {"epochs": 2, "batch_size": 16, "crop": 1, "validation": 0.0, "select": "last"}
        return target(make_config(target.config_class, name, layers, settings))

    def loop(self, name: str, norm: str | None = None, **settings: Any) -> Loop:
        defense = self.make(name, **settings)
        norm = norm or defense.norms[0]
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = build_network(defense, tiny_model(), CLASSES)
        threat = ThreatModel(parse_norm(norm), EPS[norm])
        return Loop(model, defense, tiny_split(crop=1), threat, seed=0)

    def test_config_is_frozen_and_survives_json(self, name: str) -> None:
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

    def test_resumes_from_a_checkpoint_bit_for_bit(self, name: str, tmp_path: Any) -> None:
        whole = self.loop(name, epochs=3).run()[0].state_dict()
        stopped = self.loop(name, epochs=3)
        with suppress(Stopped):
            stopped.run(tmp_path, stop_in_second_epoch)
        assert stopped.epoch == 1
        resumed = self.loop(name, epochs=3).run(tmp_path)[0].state_dict()
        assert same(list(whole.values()), list(resumed.values()))

    def test_predictor_is_rebuilt_from_its_weights(self, name: str) -> None:
        loop = self.loop(name)
        counted = loop.steps  # before the training
        predictor, _ = loop.run()
        assert loop.steps_done == counted
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            rebuilt = build_network(self.make(name), tiny_model(), CLASSES).eval()
        rebuilt.load_state_dict(predictor.state_dict(), strict=True)
        x = tiny_batch().x
        with torch.no_grad():
            assert torch.allclose(rebuilt(x), predictor(x), atol=1e-5)

    def test_leaves_no_weight_gradients(self, name: str) -> None:
        loop = self.loop(name)
        loop.run()
        assert all(p.grad is None for p in loop.model.parameters())

    def test_builds_the_same_model_from_the_same_config(self, name: str) -> None:
        first, second = (build_network(self.make(name), tiny_model(), CLASSES).state_dict() for _ in range(2))
        assert [(key, value.shape) for key, value in first.items()] == [(k, v.shape) for k, v in second.items()]

    def test_docstring_states_its_evidence(self, name: str) -> None:
        assert "Evidence:" in (registry.defense.get(name).__doc__ or "")


class ModelContract:
    """An architecture maps images in [0,1] to logits, uses torch's layers and ours, and has a first block `stem`."""

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

    def test_logits_do_not_depend_on_the_rest_of_the_batch(self, name: str) -> None:
        model = self.build(name).eval()
        x = torch.rand((3, *self.shape), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-4)

    def test_uses_known_layers(self, name: str) -> None:
        for module in self.build(name).modules():
            assert type(module).__module__.startswith(("torch.nn.modules", "bench.core.layers"))

    def test_names_its_first_block(self, name: str) -> None:
        assert hasattr(self.build(name), "stem")


class DatasetContract:
    """A data set has uint8 images and labels 0 .. K-1, and is the same at each load."""

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


class Stopped(Exception):  # noqa: N818 (not an error)
    """Raised to interrupt a training."""


def stop_in_second_epoch(steps: int, note: str, *, loss: Tensor | None = None) -> None:
    """Interrupt a training, as its progress report, after the first step of the second epoch."""
    if note.startswith("epoch 2/"):
        raise Stopped
