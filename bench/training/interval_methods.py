"""Shared code of trainings that mix attacks with interval bounds: settings, initial weights and weight penalty."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.core.contracts import Batch, Trainer
from bench.core.rules import not_negative, positive
from bench.core.specs import Length, OfEps
from bench.core.threat import ThreatModel
from bench.training.architecture import fan_in, linear_layers
from bench.training.ramps import RampConfig, RampedDefense


@dataclass(frozen=True, kw_only=True)
class IntervalConfig(RampConfig):
    epochs: int = 70
    batch_size: int = 256
    lr: float = 5e-4
    milestones: tuple[float, ...] = (50 / 70, 60 / 70)
    decay: float = 0.2
    clip_grad: float = 10.0
    warm_up: float = 0.0  # fraction of the training on clean images only
    ramp: float = 20 / 70  # fraction of the training, after the warm-up, in which eps rises from 0
    steps: int = 8  # steps of the attack
    step_size: Length = OfEps(0.5)  # step size of the attack, in units of the eps of the step
    l1: float = 1e-6  # weight of the sum of the absolute weights
    interval_init: bool = True  # initial weights under which intervals do not widen from layer to layer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(l1=not_negative(self.l1), step_size=positive(self.step_size))


IntervalT = TypeVar("IntervalT", bound=IntervalConfig)


class IntervalMethod(RampedDefense[IntervalT]):
    """A ramped defense with these settings: clean images in the warm-up, then the `loss` of the sub-sample."""

    def build(self, model: nn.Module) -> nn.Module:
        if self.config.interval_init:
            initialize(model)
        return model

    @abstractmethod
    def loss(self, x: Tensor, y: Tensor, threat: ThreatModel, trainer: Trainer) -> Tensor:
        """The loss of images (B,C,H,W) under the threat model of this step, without the weight penalty."""

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        threat, rows = self.ramped(trainer), slice(self.config.subsample)  # the batch is already shuffled
        if threat is None:
            loss = cross_entropy(trainer.model(batch.x), batch.y)
        else:
            loss = self.loss(batch.x[rows], batch.y[rows], threat, trainer)
        trainer.update(self.add_l1(loss, trainer))

    def add_l1(self, loss: Tensor, trainer: Trainer) -> Tensor:
        """The loss plus the penalty of the weights of convolutions and linear layers."""
        if not self.config.l1:
            return loss
        return loss + self.config.l1 * sum(layer.weight.abs().sum() for layer in linear_layers(trainer.model))


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Normal weights of standard deviation sqrt(2 pi) / n for n inputs of a unit, and zero biases.

    Shi, Wang, Zhang, Yi and Hsieh (2021), Section 4.1: the expected width of an interval is then the same before and
    after a layer with ReLU. Drawn from torch's global generator, as the layers' own initial weights are.
    """
    for layer in linear_layers(model):
        nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / fan_in(layer.weight))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
