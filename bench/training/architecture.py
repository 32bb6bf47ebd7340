"""Modifies any architecture before training: a batch norm over the logits, and weights that are used as signs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.core.config import TrainingConfig
from bench.core.contracts import Defense

Layer = nn.Linear | nn.Conv2d


def linear_layers(model: nn.Module) -> list[Layer]:
    """The linear and convolutional layers, in the order of the model's modules."""
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def fan_in(weight: Tensor) -> int:
    """The number of inputs of each unit or output pixel: l of the layer before, times the kernel's pixels."""
    return weight[0].numel()


def build_network(defense: Defense[Any], model: nn.Module, classes: int) -> nn.Module:
    """Build the network that the defense trains: apply the config's `binary` and `last_norm`, then call `build`.

    The settings are applied first, so that the defense's masks multiply the signs, and its ensembles contain both.
    """
    return defense.build(apply_settings(model, defense.config, classes))


def apply_settings(model: nn.Module, config: TrainingConfig, classes: int) -> nn.Module:
    """Apply the settings `binary` and `last_norm` to the architecture; without them, return the model itself."""
    if config.binary:
        for layer in linear_layers(model):
            parametrize.register_parametrization(layer, "weight", Sign())
    return nn.Sequential(model, nn.BatchNorm1d(classes)) if config.last_norm else model


class Sign(nn.Module):
    """A parametrization: a weight is used as its sign, +1 at 0, and keeps the gradient of the sign.

    Courbariaux et al. (2015), BinaryConnect, deterministic. The loop clips the weights to [-1, 1] after each step.
    """

    def forward(self, weight: Tensor) -> Tensor:
        sign: Tensor = StraightThrough.apply(torch.where(weight >= 0, 1.0, -1.0), weight)
        return sign

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class StraightThrough(torch.autograd.Function):
    """Returns a constant, but passes its gradient on to another tensor of the same shape."""

    @staticmethod
    def forward(ctx: Any, constant: Tensor, receiver: Tensor) -> Tensor:
        return constant.to(receiver.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


@torch.no_grad()
def clip_binary(model: nn.Module) -> None:
    """Clip the weights that are used as signs to [-1, 1], where a gradient can still change their sign."""
    for layer in linear_layers(model):
        if isinstance(next(iter(parametrizations_of(layer)), None), Sign):
            latent(layer).clamp_(-1, 1)


def parametrizations_of(layer: Layer) -> Sequence[nn.Module]:
    """The parametrizations of the layer's trained weight, in order; empty for a plain weight."""
    weights = layer.parametrizations["weight"] if parametrize.is_parametrized(layer, "weight") else ()  # type: ignore[index]
    return tuple(weights)


def latent(layer: Layer) -> nn.Parameter:
    """The trained (or fixed) weight before signs and masks are applied to it."""
    name = "parametrizations.weight.original" if parametrize.is_parametrized(layer, "weight") else "weight"
    return layer.get_parameter(name)
