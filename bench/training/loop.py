"""The training loop. A defense defines a step; the loop does everything else."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.core import shares
from bench.core.contracts import Batch, Defense, mode_of
from bench.core.errors import CheckError, UserError
from bench.core.failures import failures_of
from bench.core.records import Training
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.training import checkpoints, checks_before_training
from bench.training.averaging import short_averages
from bench.training.histories import keeping_losses
from bench.training.probe import Probe
from bench.training.schedules import times_of, times_without_effect, unreached_eps
from bench.training.state import TrainingState
from bench.training.symptoms import warnings_of

Report = Callable[..., None]  # (steps since the last call, a note, loss=the last one): Progress.advance


class Loop(TrainingState):
    """Trains one model.

    The checkpoint of the last finished epoch holds the whole state: a killed run that is started again gives the same
    weights, bit for bit. For the learning rate and the progress, a step is one batch of the defense's `batches`,
    however often the defense updates the weights in it. UserError if the defense or the model cannot be trained, or if
    the predictor cannot be rebuilt from its weights; this is checked before the training where possible.
    """

    def __init__(
        self,
        model: nn.Module,
        defense: Defense[Any],
        split: Split,
        threat: ThreatModel,
        *,
        seed: int,
        probe: Probe | None = None,
        curves: Probe | None = None,
    ) -> None:
        checks_before_training.check_precision(model)
        super().__init__(model, defense, split, threat, seed=seed)
        self.probe, self.curves = probe, curves
        self.defense.prepare(self)
        self.steps_per_epoch = checks_before_training.count_batches(self)
        checks_before_training.measure_pass(self)
        checks_before_training.check_predictors(self)
        checks_before_training.check_shares(self)

    def run(
        self, folder: Path | None = None, report: Report | None = None, *, identity: str = ""
    ) -> tuple[nn.Module, Training]:
        """Train from the checkpoint in `folder`, if there is one, to the end; returns the predictor and the cost.

        With a folder, each epoch ends with a checkpoint and a line of log.jsonl. identity: of the training, with its
        seed; a checkpoint of another one is not used.
        """
        if folder is not None:
            self._resume(folder, report, identity)
        while self.epoch < self.epochs:
            self.run_epoch(report)
            if folder is not None and shares.is_first():
                checkpoints.save_checkpoint(folder, self.state(), identity)
                checkpoints.save_log(folder, self.log)
        if self.best["state"] is not None:
            self.model.load_state_dict(self.best["state"], strict=True)
            predictor = self.model
        else:
            predictor = self.defense.predictor(self)
            checks_before_training.check_predictor(self, predictor)
        predictor.eval()
        lost = times_without_effect({**times_of(self.config), **self.defense.times()}, self.steps)
        short = (
            *unreached_eps(self.config, float(self.threat.eps), self.steps),
            *short_averages(self.config, self.steps, self.epochs),
        )
        for warning in (*lost, *short):
            self.warn(warning)
        cost = Training(
            epochs=self.epochs, seconds=round(self.seconds, 3), forwards=self.passes.forwards,
            backwards=self.passes.backwards, warnings=self.warnings, computation=self.execution.computation,
        )  # fmt: skip
        return predictor, cost

    def run_epoch(self, report: Report | None = None) -> None:
        """Run the steps of one epoch, the defense's `end_epoch` and the probe, and add an entry to the log.

        The logged loss is the mean over the weight updates; the loss of one update is the sum of the losses of its
        `backward` calls.
        """
        lr, seconds = self.lr, self.seconds
        with self.computed(), self.counted(self.model), self.random_layers():
            self._run_steps(report)
            self.defense.end_epoch(self)
            self.average.after_epoch(self.model, (self.epoch + 1) / self.epochs)
            loss = float(self._loss) / self._updates
        shares.check_agreement([*self.model.state_dict().values(), *self.bank.values()])
        if not math.isfinite(loss):
            raise CheckError(
                f"training stopped: the loss is {loss} in epoch {self.epoch + 1} at learning rate {lr:g}; "
                f"try a lower one (--set lr={self.config.lr / 10:g}) or --set clip_grad=1"
            )
        with self.computed():
            found = self._probe() | self._curves()
        line = {"epoch": self.epoch + 1, "lr": lr, "loss": round(loss, 6)} | found
        self.log.append(line | {"seconds": round(self.seconds - seconds, 3)})
        self.epoch += 1

    def _run_steps(self, report: Report | None) -> None:
        self._loss, self._updates = torch.zeros_like(self._loss), 0
        self.model.train()
        for batch in checks_before_training.batches_of_an_epoch(self):
            self.train_on(batch)
            if report is not None:
                report(1, f"epoch {self.epoch + 1}/{self.epochs}", loss=self._last_loss)
        if not self._updates:
            raise UserError(f"{type(self.defense).__name__}.train_step must call trainer.update, or trainer.step")

    def train_on(self, batch: Batch) -> None:
        """Do one step."""
        kept = keeping_losses(self, batch, self.config.keep_losses)
        with failures_of(f"{type(self.defense).__name__}.train_step"), self.execution.autocast(), kept:
            self.defense.train_step(batch, self)
        self.steps_done += 1

    def is_probed(self) -> bool:
        """Whether the running epoch ends with a probe."""
        due = self.config.probe_every and (self.epoch + 1) % self.config.probe_every == 0
        return bool(due) or self.epoch + 1 == self.epochs

    def _probe(self) -> dict[str, float]:
        """Measure FGSM and PGD accuracy on a few examples, for the log, the overfitting warning and the selection.

        This counts as a cost of training only if it selects the weights.
        """
        if self.probe is None or not self.is_probed():
            return {}
        predictor = self.defense.predictor(self)
        selects = self.config.select == "best"
        try:
            with mode_of(predictor, training=False), self.counted(predictor) if selects else nullcontext():
                accuracies = self.probe(predictor)
        except (CheckError, UserError) as error:
            if selects:
                raise
            self.warn(f"there is no probe after epoch {self.epoch + 1}: {error}")
            return {}
        if selects and accuracies["pgd"] > self.best["pgd"]:
            state = {key: value.clone() for key, value in predictor.state_dict().items()}
            self.best = {"pgd": accuracies["pgd"], "state": state}
        self.warnings += warnings_of(self.log, accuracies, self.epoch + 1, last=self.epoch + 1 == self.epochs)
        return {key: round(value, 6) for key, value in accuracies.items()}

    def _curves(self) -> dict[str, float]:
        """Measure losses and errors for the log, which do not count as a cost of the training."""
        if self.curves is None:
            return {}
        with mode_of(predictor := self.defense.predictor(self), training=False):
            return self.curves(predictor)

    def _resume(self, folder: Path, report: Report | None, identity: str) -> None:
        """Continue from the checkpoint in `folder`, if there is one."""
        if (state := checkpoints.read_checkpoint(folder, self.device, set(self.state()), identity)) is not None:
            self.restore(state)
            if shares.is_first():
                checkpoints.save_log(folder, self.log)  # a process may be killed between the checkpoint and its line
            if report is not None:
                report(self.steps_done, f"resumed after epoch {self.epoch}")
