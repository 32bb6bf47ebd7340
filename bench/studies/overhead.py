"""`bench study overhead`: the time of an epoch of a defense, compared with a bare loop with the same passes."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.core import registry
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.datasets.split import Split
from bench.models.build import build_model
from bench.studies.study import ModelStudy
from bench.training.loop import Loop


@registry.study("overhead")
@dataclass(frozen=True, kw_only=True)
class OverheadStudy(ModelStudy):
    """Seconds of one epoch of a single-step defense, divided by those of a bare loop with the same passes.

    The bare loop computes, for each batch in memory, a forward pass and an input gradient, then a forward pass, a
    backward pass and an optimizer step. Both run in full precision, in turn, `pairs` times. Epochs shorter than a
    second give unreliable ratios.
    """

    defense: str = "atas"  # a defense that makes one step of the optimizer a batch
    model: str = "preact-resnet18"  # spec of the model
    dataset: str = "fake:train=256"  # name of the data set, or an .npz file
    batch_size: int = 128  # examples of a batch
    pairs: int = 5  # how often both are timed
    eps: float = 8 / 255  # eps of the Linf threat model
    crop: int = 4  # pixels of padding for random crops; 0: neither crops nor flips

    def run(self) -> str:
        if self.pairs < 1:
            raise UserError(f"pairs is {self.pairs}; it must be at least 1")
        settings = {
            "batch_size": self.batch_size, "epochs": 2 * self.pairs, "crop": self.crop, "flip": self.crop > 0,
            "amp": "off", "probe_every": 0,
        }  # fmt: skip
        plan = self.plan(
            defense=self.defense, dataset=self.dataset, model=self.model, norm="Linf", eps=[self.eps],
            overrides={key: str(value) for key, value in settings.items()},
        )  # fmt: skip
        arrays, device = plan.arrays, plan.device
        assert plan.defense is not None
        split = Split(arrays.x_train, arrays.y_train, device, crop=self.crop, flip=self.crop > 0)
        loop = Loop(plan.new_model(0), plan.defense, split, plan.threat, seed=0)
        bare = build_model(self.model, arrays.shape, arrays.classes).to(device)
        batches = [(batch.x, batch.y) for batch in split.in_order(self.batch_size)]
        optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        loop.run_epoch()  # warm up both
        bare_epoch(bare, optimizer, batches, self.eps)
        seconds = []
        with Progress("overhead", self.pairs, "pair") as progress:
            for _ in range(self.pairs):
                ours = _timed(device, loop.run_epoch)
                seconds.append((ours, _timed(device, lambda: bare_epoch(bare, optimizer, batches, self.eps))))
                progress.advance(1)
        setting = f"{self.defense}, {self.model}, {self.dataset}, batch {self.batch_size}"
        head = f"{setting}, {device}, {plan.threads} threads"
        lines = [f"  {ours:.3f} s / {plain:.3f} s = {ours / plain:.3f}" for ours, plain in seconds]
        return "\n".join([head, *lines, f"median ratio {statistics.median(a / b for a, b in seconds):.3f}"])


def bare_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]], eps: float
) -> None:
    """One epoch of single-step adversarial training, without the framework."""
    model.train()
    for x, y in batches:
        model.eval()
        x_adv = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(x_adv), y), x_adv)
        x_adv = (x + eps * gradient.sign()).clamp(0, 1)
        model.train()
        cross_entropy(model(x_adv), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _timed(device: torch.device, work: Callable[[], None]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
