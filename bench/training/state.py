"""The state of a training, and the steps that change it. A defense sees it as its trainer."""

import copy
import dataclasses
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import seeds, shares
from bench.core.contracts import Batch, Defense
from bench.core.passes import Passes, count_passes
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.training.averaging import WeightAverage
from bench.training.execution import Execution
from bench.training.extra_data import ExtraData
from bench.training.optimizers import make_optimizer, step_of
from bench.training.schedules import eps_at, learning_rate
from bench.training.weight_perturbation import Loss, perturbed_weights

PLAIN_STATE = ("bank", "best", "epoch", "steps_done", "seconds", "log", "warnings")  # saved unchanged


class TrainingState:
    """Model, optimizer, generator, banks and counts, and the steps of the weights.

    It implements contracts.Trainer, whose members are documented there.
    """

    def __init__(
        self, model: nn.Module, defense: Defense[Any], split: Split, threat: ThreatModel, *, seed: int
    ) -> None:
        self.config, self.defense, self.split, self.seed = defense.config, defense, split, seed
        self._whole_threat = threat
        self.device = split.y.device
        self.execution = Execution(self.config, model, self.device)
        self.model = self.execution.placed(model)
        self.optimizer = make_optimizer(defense, self.model)
        self.average = WeightAverage(self.config, self.model)
        self.generator = seeds.generator(self.device, seed, "training")
        self.bank: dict[str, Tensor] = {}
        self.epoch, self.epochs, self.steps_done, self.seconds = 0, self.config.epochs, 0, 0.0
        self.passes = Passes()
        self.log: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.best: dict[str, Any] = {"pgd": -1.0, "state": None}
        self._loss = self._loss_of_step = self._last_loss = torch.zeros((), device=self.device)
        self._updates = 0
        self.steps_per_epoch = split.count_batches(self.config.batch_size)
        self.extra = ExtraData(self.config, self) if self.config.extra else None

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        return self.steps_done / self.steps

    @property
    def lr(self) -> float:
        return learning_rate(self.config, self.progress)

    @property
    def eps(self) -> float:
        assert isinstance(self._whole_threat.eps, float)
        return eps_at(self.config, self._whole_threat.eps, self.progress)

    @property
    def threat(self) -> ThreatModel:
        return dataclasses.replace(self._whole_threat, eps=self.eps)

    @property
    def examples(self) -> int:
        return len(self.split)

    @property
    def canvas(self) -> tuple[int, ...]:
        return tuple(self.split.canvas.shape)

    @property
    def averaged(self) -> nn.Module | None:
        return self.average.model

    def ends_at(self, *fractions: float) -> bool:
        ends = [round(fraction * self.epochs) for fraction in fractions]
        for fraction, end in zip(fractions, ends, strict=True):
            if 0 < fraction < 1 and not (0 < end < self.epochs and ends.count(end) == 1):
                self.warn(f"{fraction:.3g} of the training is no end of an epoch of its own: {self.epochs} epochs")
        return self.epoch + 1 in ends

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

    def shuffled(self) -> Iterator[Batch]:
        own = self.config.batch_size if self.extra is None else self.extra.own
        batches = self.split.shuffled(own, self.generator)
        for batch in batches if self.extra is None else self.extra.mixed(batches, self.generator):
            yield dataclasses.replace(batch, x=batch.x.contiguous(memory_format=self.execution.layout))

    def computed(self) -> AbstractContextManager[None]:
        """Inside the block, all processes together compute passes with the settings of the config."""
        average = () if self.average.copy is None else (self.average.copy.module,)
        return self.execution.of(self.model, *average)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self._loss_of_step = self._loss_of_step + loss.detach()

    def step(self) -> None:
        step_of(self.optimizer, lr=self.lr, clip_grad=self.config.clip_grad)
        self._last_loss, self._loss_of_step = self._loss_of_step, torch.zeros_like(self._loss)
        self._loss += self._last_loss
        self._updates += 1
        self.defense.after_step(self)
        self.average.after_step(self.model)

    def update(self, loss: Tensor | Loss) -> None:
        if isinstance(loss, Tensor):
            self.backward(loss)
        else:
            gamma = self.config.awp if self.progress >= self.config.awp_start else 0.0
            with perturbed_weights(self.model, self.defense.parameters(self.model), loss, gamma):
                self.backward(loss())
        self.step()

    @contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """Add the time and the passes of the block to the cost of training. The weight average counts as a model."""
        start = time.perf_counter()
        average = None if self.averaged is model else self.averaged
        with count_passes(model, self.passes), nullcontext() if average is None else count_passes(average, self.passes):
            yield
        self.seconds += time.perf_counter() - start

    @contextmanager
    def random_layers(self) -> Iterator[None]:
        """Inside the block, an epoch, layers such as dropout draw numbers that depend on the seed and the epoch only.

        Such layers use torch's global generator, whose state after the block is that before it.
        """
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seeds.derive(self.seed, "layers", self.epoch))
            yield

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Restore the state of the training, including its random generators, after the block."""
        state, modes = copy.deepcopy(self.state()), [(module, module.training) for module in self.model.modules()]
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            yield
        self.restore(state)
        self.optimizer.zero_grad(set_to_none=True)
        self._loss_of_step = torch.zeros_like(self._loss)
        for module, training in modes:
            module.training = training

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "device": self.device.type,
            "processes": shares.count(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.average.copy is None else self.average.copy.state_dict(),
            "generator": self.generator.get_state(),
            "passes": dataclasses.asdict(self.passes),
        } | {name: getattr(self, name) for name in PLAIN_STATE}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average.copy is not None:
            self.average.copy.load_state_dict(state["averaged"], strict=True)
        self.generator.set_state(state["generator"].cpu())
        self.passes = Passes(**state["passes"])
        for name in PLAIN_STATE:
            setattr(self, name, state[name])
