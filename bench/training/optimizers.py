"""The optimizer of a config, and its step."""

from typing import Any

import torch
from torch import nn

from bench.core.contracts import Defense
from bench.core.errors import UserError
from bench.training.architecture import clip_binary


def make_optimizer(defense: Defense[Any], model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer of the defense's parameters; UserError if there are none. Steps clip weights if `binary`."""
    config = defense.config
    params = list(defense.parameters(model))
    if not params:
        raise UserError(f"{type(defense).__name__} has nothing to train in this model; use another --model")
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(params, lr=config.lr, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.SGD(params, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.binary:
        optimizer.register_step_post_hook(lambda *_: clip_binary(model))
    return optimizer


def step_of(optimizer: torch.optim.Optimizer, *, lr: float, clip_grad: float) -> None:
    """Do one step with this learning rate and maximum gradient norm (0 for none), then zero the gradients."""
    if clip_grad:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(params, clip_grad)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
