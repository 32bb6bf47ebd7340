"""The device and the number of CPU threads of a run."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import nn

from bench.core.contracts import frozen
from bench.core.errors import UserError
from bench.core.failures import failures_of

# Multiply-adds per example above which several threads are faster. Below it they mostly wait for one another, which on
# a busy machine has made a small network up to 50 times slower.
WORTH_A_THREAD = 10_000_000
DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    if name not in DEVICES:
        raise UserError(f"device '{name}' is not one of {', '.join(DEVICES)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': torch sees no GPU on this machine; use --device cpu")
    return torch.device(name)


def multiply_adds(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of the linear and convolutional layers for one example of `shape` (C,H,W)."""
    total = 0

    def count(layer: nn.Linear | nn.Conv2d, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output[0].numel() * layer.weight[0].numel()

    call_with_hooks(model, [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)], shape, count)
    return total


def call_with_hooks(
    model: nn.Module, layers: Sequence[nn.Module], shape: tuple[int, ...], hook: Callable[..., None]
) -> None:
    """Call the model on one black image of `shape` (C,H,W), with a forward hook on these layers."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    image = torch.zeros(1, *shape).to(next((p for p in model.parameters()), torch.zeros(0)))
    try:
        with failures_of(f"the model, called on an image of shape {shape},"), frozen(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()


def choose_threads(model: nn.Module, shape: tuple[int, ...]) -> int:
    """One thread for a small model, all of this process's cores for a large one, divided among torchrun's processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return 1 if is_small(model, shape) else cores


def is_small(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the model uses one thread on every machine."""
    return multiply_adds(model, shape) < WORTH_A_THREAD
