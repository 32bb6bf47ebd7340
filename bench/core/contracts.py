"""The interfaces of the project: a batch, an attack, a certifier, a defense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.core.config import TrainingConfig
from bench.core.errors import CheckError, UserError
from bench.core.specs import check_counts_and_lengths
from bench.core.threat import ThreatModel


class View(Protocol):
    """How a batch was cut from its padded images: invertible, pixel by pixel."""

    def read(self, canvas: Tensor, index: Tensor) -> Tensor: ...
    def write(self, canvas: Tensor, index: Tensor, value: Tensor) -> None: ...


@dataclass(frozen=True)
class Batch:
    """x (B,C,H,W) float32 in [0,1], y (B,) int64, index (B,) the examples' rows in their split."""

    x: Tensor
    y: Tensor
    index: Tensor
    view: View | None = None  # the crop and flip that made x; None if there was none
    worst_points: Tensor | None = None  # like x: the points of lowest margin that earlier attacks found, for certifiers

    def __len__(self) -> int:
        return len(self.y)

    def read(self, bank: Tensor) -> Tensor:
        """This batch's rows of a per-example bank as float32: (N,) -> (B,); a canvas of images -> like x."""
        if bank.dim() < 4 or self.view is None:
            return bank[self.index].float()
        return self.view.read(bank, self.index).float()

    def write(self, bank: Tensor, value: Tensor) -> None:
        """Put `value` where read found it. What it does not cover (cropped away) stays."""
        value = value.detach().to(bank.dtype)
        if bank.dim() < 4 or self.view is None:
            bank[self.index] = value
        else:
            self.view.write(bank, self.index, value)


@contextmanager
def mode_of(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in train or eval mode; afterwards every module is as it was.

    Parametrized weights (a masked or binarised layer) are computed once inside, for they cannot change there.
    """
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        with parametrize.cached():
            yield
    finally:
        for module, was_training in before:
            module.training = was_training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, with no gradient for any weight; afterwards every flag is as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        with mode_of(model, training=False):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Searches the threat model for a point that the model misclassifies. Its fields are its options.

    A subclass implements `perturb`; calling the attack checks the result. An attack never reports its own success: the
    evaluator makes a fresh forward pass.
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2")
    minimum_norm: ClassVar[bool] = False  # returns the nearest adversarial example found, at any distance

    def __post_init__(self) -> None:
        check_counts_and_lengths(self)

    def check_fits(self, threat: ThreatModel, shape: tuple[int, ...], classes: int) -> None:
        """UserError if the attack does not support this norm, images of `shape` (C,H,W) or so few classes."""
        check_norm(self, threat)

    @abstractmethod
    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        """x_adv (B,C,H,W) for batch.x. The model is in eval mode and its weights require no gradient."""

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        """perturb, then restore the model, and project, check and detach the result."""
        check_norm(self, threat)
        with frozen(model):
            x_adv = self.perturb(model, batch, threat, generator=generator).detach().to(batch.x.dtype)
        if x_adv.shape != batch.x.shape or not x_adv.isfinite().all():
            raise CheckError(f"{type(self).__name__} returned points of another shape, or points that are not finite")
        if self.minimum_norm:
            return threat.clamp(x_adv)
        x_adv = threat.project(x_adv, batch.x)
        if not threat.contains(x_adv, batch.x).all():
            raise CheckError(f"{type(self).__name__} left the threat model even after the projection")
        return x_adv


@dataclass(frozen=True)
class Certificate:
    """What a certifier proved of a batch.

    radius (B,): the label is proven to be the answer at every point of the box that is this near; 0 where nothing is
    proven. certified (B,) bool: it is proven for the whole threat model. margins (B,K): lower bounds of z_y - z_j over
    the threat model, +inf at j = y, from certifiers that bound logits. tolerance: what rounding may have done to a
    margin, a number or (B,); a margin has to be above it. broken (B,) bool: `witness` (B,C,H,W) is a counterexample.
    prediction (B,): the answer of the classifier that is certified, where it is not the model itself (smoothing).
    """

    radius: Tensor
    certified: Tensor
    margins: Tensor | None = None
    tolerance: float | Tensor = 0.0
    broken: Tensor | None = None
    witness: Tensor | None = None
    prediction: Tensor | None = None

    @property
    def status(self) -> list[Literal["certified", "open", "broken"]]:
        broken = torch.zeros_like(self.certified) if self.broken is None else self.broken
        pairs = zip(self.certified.tolist(), broken.tolist(), strict=True)
        return ["certified" if safe else "broken" if fell else "open" for safe, fell in pairs]


@dataclass(frozen=True, kw_only=True)
class Certifier(ABC):
    """Proves that no point of the threat model changes the prediction. Its fields are its options.

    A file of certifiers/ writes `certify`; calling the certifier checks what it claims, as far as one can.
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2", "L1")
    kind: ClassVar[Literal["deterministic", "probabilistic"]] = "deterministic"

    def __post_init__(self) -> None:
        check_counts_and_lengths(self)

    def check_fits(self, model: nn.Module, shape: tuple[int, ...], threat: ThreatModel) -> None:
        """UserError if the certifier does not support this norm, or cannot bound this model on images (C,H,W)."""
        check_norm(self, threat)

    @abstractmethod
    def certify(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Certificate:
        """The model is in eval mode and its weights require no gradient."""

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Certificate:
        """certify, and CheckError where what it claims is plainly untrue.

        That what is certified is classified right as well is not asked of the model again: who evaluates knows it.
        """
        with frozen(model), torch.no_grad():
            check_norm(self, threat)
            found = self.certify(model, batch, threat, generator=generator)
            untrue = ~found.radius.isfinite() | (found.radius < 0)
            if found.prediction is not None:
                untrue |= found.certified & (found.prediction != batch.y)
            if found.broken is not None and found.witness is not None:
                there = found.witness
                wrong = (model(there).argmax(dim=1) != batch.y) & threat.contains(there, batch.x)
                untrue |= found.broken & (~wrong | found.certified)
        if untrue.any():
            raise CheckError(
                f"{type(self).__name__} claims what is not so of test example {int(batch.index[untrue][0])}"
            )
        return found


def check_norm(method: Attack | Certifier, threat: ThreatModel) -> None:
    """UserError if an attack or certifier does not support the norm of the threat model."""
    if threat.norm not in method.norms:
        raise UserError(f"{type(method).__name__} has no {threat.norm} form; its norms are {', '.join(method.norms)}")


class Trainer(Protocol):
    """What a defense sees of the training loop (bench/training/loop.py)."""

    model: nn.Module
    generator: torch.Generator
    bank: dict[str, Tensor]
    epoch: int
    epochs: int

    @property
    def averaged(self) -> nn.Module | None: ...
    @property
    def eps(self) -> float: ...
    @property
    def lr(self) -> float: ...
    @property
    def threat(self) -> ThreatModel: ...
    @property
    def examples(self) -> int: ...
    @property
    def canvas(self) -> tuple[int, ...]: ...
    def shuffled(self) -> Iterator[Batch]: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self) -> None: ...
    def update(self, loss: Tensor) -> None: ...
    def starts(self, *fractions: float) -> bool: ...


ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


class Defense(ABC, Generic[ConfigT]):
    """A way to train a robust model. It holds its config and nothing else: all state is the trainer's."""

    config_class: ClassVar[type[TrainingConfig]]
    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2")

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def build(self, model: nn.Module) -> nn.Module:
        """The model that is trained: a function of the config alone (masks, binarising, another last layer)."""
        return model

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """What the optimizer changes."""
        return model.parameters()

    def prepare(self, trainer: Trainer) -> None:
        """Make the per-example banks, before the first epoch."""

    def batches(self, trainer: Trainer) -> Iterator[Batch]:
        """The batches of one epoch."""
        yield from trainer.shuffled()

    @abstractmethod
    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        """One step: trainer.update(loss), or trainer.backward(loss) as often as needed and trainer.step()."""

    def after_step(self, trainer: Trainer) -> None:
        """Projections and masks, after the optimizer's step."""

    def end_epoch(self, trainer: Trainer) -> None:
        """Resets and snapshots, after an epoch."""

    def predictor(self, trainer: Trainer) -> nn.Module:
        """The model that is evaluated: the weight average where one is kept, else the model."""
        return trainer.averaged if trainer.averaged is not None else trainer.model
