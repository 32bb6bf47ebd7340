"""Defenses as a user may write them in a plugin: other batches, another predictor, parts of the model."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from attacks.ascent import ascend
from bench.api import Defense, TrainingConfig

STEPS = 3  # of the attacks


@dataclass(frozen=True, kw_only=True)
class Replays(TrainingConfig):
    replays: int = 4


class FreeAT(Defense[Replays]):
    """FreeAT by repeated batches: one gradient moves both the weights and the perturbations."""

    config_class = Replays

    def prepare(self, trainer):
        trainer.bank["delta"] = torch.zeros(trainer.canvas, device=trainer.generator.device)

    def batches(self, trainer):
        for batch in trainer.shuffled():
            for _ in range(self.config.replays):
                yield batch

    def train_step(self, batch, trainer):
        delta = batch.read(trainer.bank["delta"])
        x = trainer.threat.project(batch.x + delta, batch.x).requires_grad_()
        trainer.backward(cross_entropy(trainer.model(x), batch.y))
        batch.write(trainer.bank["delta"], (delta + trainer.eps * x.grad.sign()).clamp(-trainer.eps, trainer.eps))
        trainer.step()


class Snapshots(nn.Module):
    """In train mode the network `live`; in eval mode the log of the mean softmax of its snapshots."""

    def __init__(self, live, n):
        super().__init__()
        self.live = live
        self.snapshots = nn.ModuleList(copy.deepcopy(live) for _ in range(n))

    def forward(self, x):
        if self.training:
            return self.live(x)
        return torch.stack([each(x).softmax(dim=1) for each in self.snapshots]).mean(dim=0).clamp(min=1e-12).log()


class SnapshotEnsemble(Defense[TrainingConfig]):
    """The ensemble is made by `build`; the network in training is attacked as a part of it."""

    config_class = TrainingConfig
    members = 3

    def build(self, model):
        return Snapshots(model, self.members)

    def parameters(self, model):
        return model.live.parameters()

    def train_step(self, batch, trainer):
        x_adv = ascend(
            trainer.model.live, batch.x, batch.y, threat=trainer.threat, steps=STEPS, alpha=0.1, start=batch.x
        )
        trainer.update(cross_entropy(trainer.model(x_adv), batch.y))

    def end_epoch(self, trainer):
        model = trainer.model
        model.snapshots[trainer.epoch % self.members].load_state_dict(model.live.state_dict())


class OnlyLive(SnapshotEnsemble):
    """Never calls the whole model."""

    def train_step(self, batch, trainer):
        trainer.update(cross_entropy(trainer.model.live(batch.x), batch.y))


class EnsemblePredictor(Defense[TrainingConfig]):
    """The ensemble is made by `predictor`, so it is not what `build` makes."""

    config_class = TrainingConfig

    def train_step(self, batch, trainer):
        trainer.update(cross_entropy(trainer.model(batch.x), batch.y))

    def end_epoch(self, trainer):
        for key, value in trainer.model.state_dict().items():
            trainer.bank[f"{trainer.epoch}.{key}"] = value.clone()

    def predictor(self, trainer):
        if trainer.epoch < trainer.epochs:
            return trainer.model
        ensemble = Snapshots(trainer.model, trainer.epochs)
        for epoch, member in enumerate(ensemble.snapshots):
            member.load_state_dict({key: trainer.bank[f"{epoch}.{key}"] for key in member.state_dict()})
        return ensemble


class LatentAttack(Defense[TrainingConfig]):
    """Attacks the features: STEPS gradients through the last layer for one pass through those before it."""

    config_class = TrainingConfig

    def train_step(self, batch, trainer):
        features, last = trainer.model[:-1](batch.x), trainer.model[-1]
        shifted = features.detach()
        for _ in range(STEPS):
            shifted.requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(last(shifted), batch.y), shifted)
            shifted = (shifted + 0.1 * gradient.sign()).detach()
        trainer.update(cross_entropy(last(features + (shifted - features).detach()), batch.y))


class OtherWeights(Defense[TrainingConfig]):
    """A gradient at perturbed weights, by torch.func.functional_call, in two chunks of the batch."""

    config_class = TrainingConfig

    def train_step(self, batch, trainer):
        half = len(batch) // 2
        for rows in (slice(half), slice(half, None)):
            weights = {name: weight * 1.01 for name, weight in trainer.model.named_parameters()}
            logits = functional_call(trainer.model, weights, (batch.x[rows],))
            trainer.backward(cross_entropy(logits, batch.y[rows], reduction="sum") / len(batch))
        trainer.step()
