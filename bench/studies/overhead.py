"""What the framework costs: an epoch of a defense against a bare loop with the same passes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from bench.core import registry
from bench.core.config import make_config
from bench.core.devices import choose_threads
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.runs.plan import build_model, checked_eps, choose_device, load_arrays
from bench.training.loop import Loop


@registry.study("overhead")
def overhead(
    *,
    defense: str = "atas",
    model: str = "preact-resnet18",
    dataset: str = "fake:train=256",
    batch_size: int = 128,
    pairs: int = 5,
    eps: float = 8 / 255,
    crop: int = 4,
    device: str = "auto",
    threads: int = 0,
) -> str:
    """Seconds of one epoch of a one-step defense over a bare loop with the same passes, in alternating pairs.

    The bare loop does, for each batch in memory, a forward and an input gradient, then a forward, a backward and an
    optimizer step. Both run at full precision. Fewer than one second an epoch says little.
    """
    where = choose_device(device)
    arrays = load_arrays(dataset, None)
    threat = ThreatModel("Linf", checked_eps(eps, "Linf", arrays.shape))
    if pairs < 1 or threads < 0:
        raise UserError(f"pairs is {pairs} and threads {threads}; at least 1 pair, and threads 0 for as many as pay")
    settings = {"batch_size": batch_size, "epochs": 2 * pairs, "crop": crop, "flip": crop > 0, "amp": "off"}
    target = registry.defense.get(defense)
    config = make_config(target.config_class, defense, {"probe_every": 0}, settings)
    split = Split(arrays.x_train, arrays.y_train, where, crop=crop, flip=crop > 0)
    torch.manual_seed(0)
    trained = target(config)
    ours = trained.build(build_model(model, arrays.shape, arrays.classes))
    torch.set_num_threads(threads or choose_threads(ours, arrays.shape))
    bare = build_model(model, arrays.shape, arrays.classes).to(where)
    loop = Loop(ours, trained, split, threat, seed=0)
    batches = [(batch.x, batch.y) for batch in split.in_order(batch_size)]
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loop.run_epoch()  # both warm up once
    bare_epoch(bare, optimizer, batches, eps)
    ratios, seconds = [], []
    for _ in tqdm(range(pairs), desc="overhead", unit="pair"):
        ours_s = _timed(where, loop.run_epoch)
        bare_s = _timed(where, lambda: bare_epoch(bare, optimizer, batches, eps))
        ratios.append(ours_s / bare_s)
        seconds.append((ours_s, bare_s))
    lines = [f"  {a:.3f} s / {b:.3f} s = {r:.3f}" for (a, b), r in zip(seconds, ratios, strict=True)]
    head = f"{defense}, {model}, {dataset}, batch {batch_size}, {where}, {torch.get_num_threads()} threads"
    return "\n".join([head, *lines, f"median ratio {statistics.median(ratios):.3f}"])


def bare_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[torch.Tensor, torch.Tensor]], eps: float
) -> None:
    """One epoch of one-step adversarial training with nothing around it."""
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


def _timed(where: torch.device, work: Callable[[], None]) -> float:
    if where.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
