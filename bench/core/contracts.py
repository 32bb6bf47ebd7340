"""The interfaces of the project: a batch, an attack, a certifier, a defense."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from bench.core.batches import Batch as Batch
from bench.core.classifier import as_classifier, unwrapped
from bench.core.config import TrainingConfig
from bench.core.errors import CheckError, UserError
from bench.core.modes import frozen as frozen
from bench.core.modes import mode_of as mode_of
from bench.core.modes import without_tf32
from bench.core.network_format import Description
from bench.core.specs import check_counts_and_lengths
from bench.core.threat import ThreatModel
from bench.core.trainer import Trainer as Trainer


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
    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Tensor:
        """x_adv (B,C,H,W) for batch.x. The model is in eval mode and its weights require no gradient."""

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Tensor:
        """Call `perturb`, restore the model, then project, check and detach the result.

        The attack sees the model as a Classifier (bench/core/classifier.py), which keeps its gradients finite.
        """
        check_norm(self, threat)
        if len(batch) == 0:
            return batch.x.clone()
        model = as_classifier(model)
        with frozen(model), torch.enable_grad():
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
    """What a certifier proved for a batch.

    radius (B,): every point of the box within this distance is proven to have the label; 0 if nothing is proven.
    certified (B,) bool: this is proven for the whole threat model.
    margins (B,K): lower bounds of z_y - z_j over the threat model, +inf at j = y; None if logits are not bounded.
    tolerance: a bound on the rounding error of a margin, a number or (B,); a proven margin exceeds it.
    nodes (B,) int64: the sub-problems that were searched for each example; None if the certifier does not search.
    broken (B,) bool: `witness` (B,C,H,W) is a counterexample; None if the certifier does not search for any.
    prediction (B,): of the certified classifier, if it is not the model itself (smoothing).
    proof: for each example, a proof for the whole threat model (bench/core/proof_format.py), or b"" if there is none.
    """

    radius: Tensor
    certified: Tensor
    margins: Tensor | None = None
    tolerance: float | Tensor = 0.0
    nodes: Tensor | None = None
    broken: Tensor | None = None
    witness: Tensor | None = None
    prediction: Tensor | None = None
    proof: Sequence[bytes] | None = None

    @property
    def status(self) -> list[Literal["certified", "open", "broken"]]:
        broken = torch.zeros_like(self.certified) if self.broken is None else self.broken
        flags = zip(self.certified.tolist(), broken.tolist(), strict=True)
        return ["certified" if is_certified else "broken" if is_broken else "open" for is_certified, is_broken in flags]


@dataclass(frozen=True, kw_only=True)
class Certifier(ABC):
    """Proves that no point of the threat model changes the prediction. Its fields are its options.

    A subclass implements `certify`; calling the certifier also checks the claims that are cheap to check. A certifier
    that searches has an option `nodes`, the maximum number of sub-problems per example. Its decisions depend on this
    number and never on time, unless the user has set a time limit (bench/core/time_limit.py).
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2", "L1")
    kind: ClassVar[Literal["deterministic", "probabilistic"]] = "deterministic"
    node_cost: ClassVar[int] = 1  # of a search: sub-problems of a bracket's budget that one node costs

    def __post_init__(self) -> None:
        check_counts_and_lengths(self)

    def check_fits(self, model: nn.Module, shape: tuple[int, ...], threat: ThreatModel) -> None:
        """UserError if the certifier does not support this norm, or cannot bound this model on images (C,H,W)."""
        check_norm(self, threat)

    def model_view(self, model: nn.Module) -> nn.Module:
        """Return the model that `certify` gets: the user's own, or a Classifier if it is only queried (smoothing)."""
        return as_classifier(model) if self.kind == "probabilistic" else unwrapped(model)

    def describe(self, model: nn.Module, image: Tensor) -> Description | None:
        """Describe the layers that its proofs refer to, for images like `image` (1,C,H,W); None if it gives no proofs.

        UserError if a layer cannot be described, or has weights that are not in the model's state dict.
        """
        return None

    @abstractmethod
    def certify(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        """The model is in eval mode and its weights require no gradient."""

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        """Call `certify`; CheckError if a radius is not a finite number >= 0 or a counterexample is not valid.

        The evaluator checks that certified examples are classified correctly.
        """
        check_norm(self, threat)
        model = self.model_view(model)
        with frozen(model), torch.no_grad(), without_tf32():
            certificate = self.certify(model, batch, threat, generator=generator)
            false = ~certificate.radius.isfinite() | (certificate.radius < 0)
            if certificate.prediction is not None:
                false |= certificate.certified & (certificate.prediction != batch.y)
            if certificate.broken is not None and (witness := certificate.witness) is not None:
                valid = (as_classifier(model)(witness).argmax(dim=1) != batch.y) & threat.contains(witness, batch.x)
                false |= certificate.broken & (~valid | certificate.certified)
        if false.any():
            example = int(batch.index[false][0])
            raise CheckError(f"{type(self).__name__} made a false claim about test example {example}")
        return certificate


def check_norm(method: Attack | Certifier, threat: ThreatModel) -> None:
    """UserError if an attack or certifier does not support the norm of the threat model."""
    if threat.norm not in method.norms:
        raise UserError(f"{type(method).__name__} has no {threat.norm} form; its norms are {', '.join(method.norms)}")


ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


class Defense(ABC, Generic[ConfigT]):
    """A way to train a robust model. It holds its config only; all state is in the trainer."""

    config_class: ClassVar[type[TrainingConfig]]
    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2")
    supported_settings: ClassVar[tuple[str, ...]] = ()
    """Which of the settings `awp`, `label_smoothing`, `cutmix` and `extra` `train_step` supports; others are refused.
    `awp`: it passes a function to `trainer.update`. `label_smoothing`: its loss is `self.cross_entropy`. `cutmix`: it
    uses `batch.target` instead of `batch.y`. `extra`: it keeps no state for each example, because additional data have
    the index -1."""

    divisible: ClassVar[bool] = True
    """Whether several processes can train it. False if `train_step` looks inside a call of the model (by a hook, for
    example), because each process computes only its share of the call. Calls of parts of the model are not divided."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def build(self, model: nn.Module) -> nn.Module:
        """The model to train, made from an architecture (masks, binary weights, another last layer) by the config."""
        return model

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """The parameters that the optimizer updates."""
        return model.parameters()

    def prepare(self, trainer: Trainer) -> None:
        """Create the per-example banks, before the first epoch."""

    def times(self) -> Mapping[str, Sequence[float]]:
        """Points in time at which `train_step` changes, as fractions of the training (`trainer.progress`), by setting.

        The loop warns about those that a short training does not reach.
        """
        return {}

    def batches(self, trainer: Trainer) -> Iterator[Batch]:
        """Yield the batches of one epoch; every epoch has the same number of them.

        The loop iterates over them once before the training to count the steps, and then restores the state.
        """
        yield from trainer.shuffled()

    @abstractmethod
    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        """Train on one batch: trainer.update(loss), or trainer.backward(loss) several times and trainer.step()."""

    def cross_entropy(
        self, logits: Tensor, target: Tensor, reduction: Literal["mean", "sum", "none"] = "mean"
    ) -> Tensor:
        """The cross entropy of logits (B,K) with labels (B,) or targets (B,K), under the setting `label_smoothing`."""
        smoothing = self.config.label_smoothing
        return functional.cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)

    def after_step(self, trainer: Trainer) -> None:
        """Called after each step of the optimizer: projections, masks."""

    def end_epoch(self, trainer: Trainer) -> None:
        """Called after each epoch: resets, snapshots."""

    def predictor(self, trainer: Trainer) -> nn.Module:
        """The model to evaluate: the weight average if there is one, else the model.

        Only its weights are saved, and `build` rebuilds it. So it must be the network that `build` returns, with other
        weights; otherwise the loop raises an error before the training. An ensemble of snapshots, for example, is made
        in `build`: it computes the mean in eval mode and is one network in train mode.
        """
        return trainer.averaged if trainer.averaged is not None else trainer.model
