"""The training loop. A defense defines a step; the loop does everything else."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.core import seeds
from bench.core.contracts import Batch, Defense, mode_of
from bench.core.errors import CheckError, UserError
from bench.core.files import write_atomically
from bench.core.passes import Passes, count_passes
from bench.core.records import Training
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.training import checkpoints
from bench.training.overfitting import has_collapsed
from bench.training.schedules import learning_rate

Probe = Callable[[nn.Module], dict[str, float]]  # a model -> {"fgsm": accuracy, "pgd": accuracy}
Progress = Callable[[int, str], None]  # steps since the last call, a note
PLAIN_STATE = ("bank", "best", "epoch", "steps_done", "seconds", "log", "warnings")  # saved as they are


class Loop:
    """Trains one model. It implements contracts.Trainer, whose members are documented there.

    The checkpoint of the last finished epoch holds the whole state: a run that was killed and is started again gives
    the same weights, bit for bit.
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
        self.config, self.defense, self.split, self.threat, self.probe = defense.config, defense, split, threat, probe
        self.device = split.y.device
        self.fast = self.config.amp == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.model = model.to(self.device)
        if self.fast:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(defense, self.model)
        self.averaged_model: AveragedModel | None = None
        if self.config.ema:
            average = get_ema_multi_avg_fn(self.config.ema)
            self.averaged_model = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.generator = seeds.generator(self.device, seed, "training")
        self.bank: dict[str, Tensor] = {}
        self.epoch = 0
        self.epochs = self.config.epochs
        self.steps_done = 0
        self.passes = Passes()
        self.seconds = 0.0
        self.log: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.best: dict[str, Any] = {"pgd": -1.0, "state": None}
        self._loss = torch.zeros((), device=self.device)
        self.defense.prepare(self)

    @property
    def lr(self) -> float:
        return learning_rate(self.config, self.steps_done / (self.epochs * self.steps_per_epoch))

    @property
    def eps(self) -> float:
        assert isinstance(self.threat.eps, float)
        return self.threat.eps

    @property
    def examples(self) -> int:
        return len(self.split)

    @property
    def canvas(self) -> tuple[int, ...]:
        return tuple(self.split.canvas.shape)

    @property
    def averaged(self) -> nn.Module | None:
        return None if self.averaged_model is None else self.averaged_model.module

    @property
    def steps_per_epoch(self) -> int:
        return self.split.count_batches(self.config.batch_size)

    def starts(self, *fractions: float) -> bool:
        return self.epoch + 1 in {round(fraction * self.epochs) for fraction in fractions}

    def shuffled(self) -> Iterator[Batch]:
        for batch in self.split.shuffled(self.config.batch_size, self.generator):
            x = batch.x.contiguous(memory_format=torch.channels_last) if self.fast else batch.x
            yield Batch(x, batch.y, batch.index, batch.view)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self._loss += loss.detach()

    def step(self) -> None:
        if self.config.clip_grad:
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(params, self.config.clip_grad)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.defense.after_step(self)
        if self.averaged_model is not None:
            self.averaged_model.update_parameters(self.model)

    def update(self, loss: Tensor) -> None:
        self.backward(loss)
        self.step()

    def run(self, folder: Path | None = None, report: Progress | None = None) -> tuple[nn.Module, Training]:
        """Train to the end, from the checkpoint in `folder` if there is one. Returns the predictor and the cost.

        With a folder, each epoch ends with a checkpoint and a line of log.jsonl.
        """
        if folder is not None:
            self._resume(folder, report)
        while self.epoch < self.epochs:
            self.run_epoch(report)
            if folder is not None:
                checkpoints.save_checkpoint(folder, self._state())
                lines = "".join(json.dumps(line) + "\n" for line in self.log)
                write_atomically(folder / "log.jsonl", lines.encode())
        if self.best["state"] is not None:
            self.model.load_state_dict(self.best["state"], strict=True)
            predictor = self.model
        else:
            predictor = self.defense.predictor(self)
        predictor.eval()
        cost = Training(
            epochs=self.epochs, seconds=round(self.seconds, 3), forwards=self.passes.forwards,
            backwards=self.passes.backwards, warnings=self.warnings,
        )  # fmt: skip
        return predictor, cost

    def run_epoch(self, report: Progress | None = None) -> None:
        """The steps of one epoch, the defense's `end_epoch`, the probe, and an entry of the log."""
        lr, seconds = self.lr, self.seconds
        with self._counted(self.model):
            steps = self._run_steps(report)
            self.defense.end_epoch(self)
            loss = float(self._loss) / steps if steps else math.nan
        if not math.isfinite(loss):
            raise CheckError(
                f"training stopped: the loss is {loss} in epoch {self.epoch + 1} at learning rate {lr:g}; "
                f"try a lower one (--set lr={self.config.lr / 10:g}) or --set clip_grad=1"
            )
        line = {"epoch": self.epoch + 1, "lr": lr, "loss": round(loss, 6)} | self._probe()
        self.log.append(line | {"seconds": round(self.seconds - seconds, 3)})
        self.epoch += 1

    def _run_steps(self, report: Progress | None) -> int:
        self._loss.zero_()
        self.model.train()
        steps = 0
        for batch in self.defense.batches(self):
            with torch.autocast(self.device.type, torch.bfloat16) if self.fast else nullcontext():
                self.defense.train_step(batch, self)
            self.steps_done += 1
            steps += 1
            if report is not None:
                report(1, f"epoch {self.epoch + 1}/{self.epochs}")
        return steps

    def _probe(self) -> dict[str, float]:
        """FGSM and PGD accuracy on a few examples, for the log, the overfitting warning and the selection.

        They count as a cost of training only if they select the weights.
        """
        due = self.config.probe_every and (self.epoch + 1) % self.config.probe_every == 0
        if self.probe is None or not (due or self.epoch + 1 == self.epochs):
            return {}
        predictor = self.defense.predictor(self)
        selects = self.config.select == "best"
        with mode_of(predictor, training=False), self._counted(predictor) if selects else nullcontext():
            accuracies = self.probe(predictor)
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
        """Add the time and the passes of the block to the cost of training."""
        start = time.perf_counter()
        with count_passes(model, self.passes):
            yield
        self.seconds += time.perf_counter() - start

    def _state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "device": self.device.type,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.averaged_model is None else self.averaged_model.state_dict(),
            "generator": self.generator.get_state(),
            "passes": [self.passes.forwards, self.passes.backwards],
        } | {name: getattr(self, name) for name in PLAIN_STATE}

    def _resume(self, folder: Path, report: Progress | None) -> None:
        """Continue from the checkpoint in `folder`, if there is one; UserError if it is of another device."""
        state = checkpoints.read_checkpoint(folder, self.device, set(self._state()))
        if state is None:
            return
        if state["device"] != self.device.type:
            raise UserError(
                f"{folder} was begun on {state['device']}, whose random numbers differ from those on "
                f"{self.device.type}; use --device {state['device']}, or another --out"
            )
        self.model.load_state_dict(state["model"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged_model is not None:
            self.averaged_model.load_state_dict(state["averaged"], strict=True)
        self.generator.set_state(state["generator"].cpu())
        self.passes = Passes(*state["passes"])
        for name in PLAIN_STATE:
            setattr(self, name, state[name])
        if report is not None:
            report(self.steps_done, f"resumed after epoch {self.epoch}")


def _optimizer(defense: Defense[Any], model: nn.Module) -> torch.optim.Optimizer:
    config = defense.config
    params = list(defense.parameters(model))
    if not params:
        raise UserError(f"{type(defense).__name__} has nothing to train in this model; use another --model")
    if config.optimizer == "adam":
        return torch.optim.Adam(params, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(params, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
