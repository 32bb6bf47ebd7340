"""The training loop. A defense defines a step; the loop does everything else."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import seeds
from bench.core.contracts import Batch, Defense, mode_of
from bench.core.errors import CheckError, UserError
from bench.core.failures import failures_of
from bench.core.passes import Passes, count_passes
from bench.core.records import Training
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.training import checkpoints, rehearsal
from bench.training.averaging import WeightAverage
from bench.training.optimizers import make_optimizer, step_of
from bench.training.overfitting import has_collapsed
from bench.training.probe import Probe
from bench.training.schedules import eps_at, learning_rate, lost_times, times_of
from bench.training.weight_perturbation import Loss, perturbed_weights

Report = Callable[..., None]  # (steps since the last call, a note, loss=the last one): Progress.advance
PLAIN_STATE = ("bank", "best", "epoch", "steps_done", "seconds", "log", "warnings")  # saved as they are


class Loop:
    """Trains one model. It implements contracts.Trainer, whose members are documented there.

    The checkpoint of the last finished epoch holds the whole state: a run that was killed and is started again gives
    the same weights, bit for bit. A step is one batch of the defense's `batches`, for the learning rate and for the
    progress, however often the defense updates the weights in it. UserError if the defense or the model cannot be
    trained, or if the predictor cannot be rebuilt from its weights; what can be known is checked before the training.
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
    ) -> None:
        self.config, self.defense, self.split, self.probe = defense.config, defense, split, probe
        self._whole_threat = threat
        self.device = split.y.device
        rehearsal.check_precision(model)
        self.fast = self.config.amp == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.model = model.to(self.device)
        if self.fast:
            self.model = self.model.to(memory_format=torch.channels_last)
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
        self.defense.prepare(self)
        self.steps_per_epoch = rehearsal.count_batches(self)
        rehearsal.measure_pass(self)
        rehearsal.check_predictors(self)

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

    def starts(self, *fractions: float) -> bool:
        ends = [round(fraction * self.epochs) for fraction in fractions]
        for fraction, end in zip(fractions, ends, strict=True):
            if 0 < fraction < 1 and not (0 < end < self.epochs and ends.count(end) == 1):
                self.warn(f"{fraction:.3g} of the training is no end of an epoch of its own: {self.epochs} epochs")
        return self.epoch + 1 in ends

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

    def shuffled(self) -> Iterator[Batch]:
        layout = torch.channels_last if self.fast else torch.contiguous_format
        for batch in self.split.shuffled(self.config.batch_size, self.generator):
            yield dataclasses.replace(batch, x=batch.x.contiguous(memory_format=layout))

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

    def run(
        self, folder: Path | None = None, report: Report | None = None, *, identity: str = ""
    ) -> tuple[nn.Module, Training]:
        """Train to the end, from the checkpoint in `folder` if there is one: the predictor, and the training's cost.

        With a folder, each epoch ends with a checkpoint and a line of log.jsonl. identity: of the training, with its
        seed; a checkpoint of another one is not used.
        """
        if folder is not None:
            self._resume(folder, report, identity)
        while self.epoch < self.epochs:
            self.run_epoch(report)
            if folder is not None:
                checkpoints.save_checkpoint(folder, self._state(), identity)
                checkpoints.save_log(folder, self.log)
        if self.best["state"] is not None:
            self.model.load_state_dict(self.best["state"], strict=True)
            predictor = self.model
        else:
            predictor = self.defense.predictor(self)
            rehearsal.check_predictor(self, predictor)
        predictor.eval()
        for warning in lost_times({**times_of(self.config), **self.defense.times()}, self.steps):
            self.warn(warning)
        cost = Training(
            epochs=self.epochs, seconds=round(self.seconds, 3), forwards=self.passes.forwards,
            backwards=self.passes.backwards, warnings=self.warnings,
        )  # fmt: skip
        return predictor, cost

    def run_epoch(self, report: Report | None = None) -> None:
        """The steps of one epoch, the defense's `end_epoch`, the probe, and an entry of the log.

        The loss of the log is the mean over the updates of the weights; that of one update is the sum of the losses of
        its calls of `backward`, whose gradient it follows.
        """
        lr, seconds = self.lr, self.seconds
        with self._counted(self.model):
            self._run_steps(report)
            self.defense.end_epoch(self)
            self.average.after_epoch(self.model, (self.epoch + 1) / self.epochs)
            loss = float(self._loss) / self._updates
        if not math.isfinite(loss):
            raise CheckError(
                f"training stopped: the loss is {loss} in epoch {self.epoch + 1} at learning rate {lr:g}; "
                f"try a lower one (--set lr={self.config.lr / 10:g}) or --set clip_grad=1"
            )
        line = {"epoch": self.epoch + 1, "lr": lr, "loss": round(loss, 6)} | self._probe()
        self.log.append(line | {"seconds": round(self.seconds - seconds, 3)})
        self.epoch += 1

    def _run_steps(self, report: Report | None) -> None:
        self._loss, self._updates = torch.zeros_like(self._loss), 0
        self.model.train()
        for batch in rehearsal.batches_of_an_epoch(self):
            self.train_on(batch)
            if report is not None:
                report(1, f"epoch {self.epoch + 1}/{self.epochs}", loss=self._last_loss)
        if not self._updates:
            raise UserError(f"{type(self.defense).__name__}.train_step must call trainer.update, or trainer.step")

    def train_on(self, batch: Batch) -> None:
        """One step."""
        fast = torch.autocast(self.device.type, torch.bfloat16) if self.fast else nullcontext()
        with failures_of(f"{type(self.defense).__name__}.train_step"), fast:
            self.defense.train_step(batch, self)
        self.steps_done += 1

    def is_probed(self) -> bool:
        """Whether the running epoch ends with a probe."""
        due = self.config.probe_every and (self.epoch + 1) % self.config.probe_every == 0
        return bool(due) or self.epoch + 1 == self.epochs

    def _probe(self) -> dict[str, float]:
        """FGSM and PGD accuracy on a few examples, for the log, the overfitting warning and the selection.

        They count as a cost of training only if they select the weights.
        """
        if self.probe is None or not self.is_probed():
            return {}
        predictor = self.defense.predictor(self)
        selects = self.config.select == "best"
        try:
            with mode_of(predictor, training=False), self._counted(predictor) if selects else nullcontext():
                accuracies = self.probe(predictor)
        except (CheckError, UserError) as error:
            if selects:
                raise
            self.warn(f"there is no probe after epoch {self.epoch + 1}: {error}")
            return {}
        if selects and accuracies["pgd"] > self.best["pgd"]:
            state = {key: value.clone() for key, value in predictor.state_dict().items()}
            self.best = {"pgd": accuracies["pgd"], "state": state}
        history = [(line["fgsm"], line["pgd"]) for line in [*self.log, accuracies] if "pgd" in line]
        if has_collapsed(history):
            self.warnings.append(
                f"catastrophic overfitting in epoch {self.epoch + 1}: PGD accuracy {accuracies['pgd']:.1%}, "
                f"one-step accuracy {accuracies['fgsm']:.1%}"
            )
        return {key: round(value, 6) for key, value in accuracies.items()}

    @contextmanager
    def _counted(self, model: nn.Module) -> Iterator[None]:
        """Add the time and the passes of the block to the cost of training. The weight average counts as a model."""
        start = time.perf_counter()
        average = None if self.averaged is model else self.averaged
        with count_passes(model, self.passes), nullcontext() if average is None else count_passes(average, self.passes):
            yield
        self.seconds += time.perf_counter() - start

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Do not keep what the block does to the state of the training, nor its random draws."""
        state, modes = copy.deepcopy(self._state()), [(module, module.training) for module in self.model.modules()]
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            yield
        self._restore(state)
        self.optimizer.zero_grad(set_to_none=True)
        self._loss_of_step = torch.zeros_like(self._loss)
        for module, training in modes:
            module.training = training

    def _state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "device": self.device.type,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.average.copy is None else self.average.copy.state_dict(),
            "generator": self.generator.get_state(),
            "passes": dataclasses.asdict(self.passes),
        } | {name: getattr(self, name) for name in PLAIN_STATE}

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average.copy is not None:
            self.average.copy.load_state_dict(state["averaged"], strict=True)
        self.generator.set_state(state["generator"].cpu())
        self.passes = Passes(**state["passes"])
        for name in PLAIN_STATE:
            setattr(self, name, state[name])

    def _resume(self, folder: Path, report: Report | None, identity: str) -> None:
        """Continue from the checkpoint in `folder`, if there is one."""
        if (state := checkpoints.read_checkpoint(folder, self.device, set(self._state()), identity)) is not None:
            self._restore(state)
            checkpoints.save_log(folder, self.log)  # a process may be killed between the checkpoint and its line
            if report is not None:
                report(self.steps_done, f"resumed after epoch {self.epoch}")
