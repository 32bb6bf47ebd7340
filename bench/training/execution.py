"""How the passes of a training are computed: precision, memory layout, compiled or not, on one process or several.

These settings are not part of a method, and change the results only by rounding.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import shares
from bench.core.config import TrainingConfig
from bench.core.errors import UserError
from bench.core.records import Computation
from bench.training.batch_norm import of_shares


class Execution:
    """The settings of a config for the passes on a device."""

    def __init__(self, config: TrainingConfig, model: nn.Module, device: torch.device) -> None:
        self.config, self.device = config, device
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.bfloat16 = config.amp == "bfloat16" or (config.amp == "auto" and capable)
        last = config.layout == "channels_last" or (config.layout == "auto" and self.bfloat16 and capable)
        self.layout = torch.channels_last if last else torch.contiguous_format
        self._compiled: dict[type, Callable[..., Any]] = {}
        if isinstance(model, torch.jit.ScriptModule) and (config.compiled or shares.count() > 1):
            raise UserError(
                "a TorchScript model is neither compiled nor divided among processes; give its Python class"
            )
        if config.norm_shares > 1 and shares.count() not in (1, config.norm_shares):
            raise UserError(
                f"norm_shares is {config.norm_shares} and there are {shares.count()} processes; "
                f"use 1 or {config.norm_shares}"
            )

    @property
    def computation(self) -> Computation:
        """Describe the computation for the record."""
        products = torch.get_float32_matmul_precision() != "highest"
        allowed = {"convolutions": torch.backends.cudnn.allow_tf32, "products": products}
        return Computation(
            device=self.device.type, processes=shares.count(), precision="bfloat16" if self.bfloat16 else "float32",
            channels_last=self.layout == torch.channels_last, compiled=self.config.compiled,
            tf32=[name for name, on in allowed.items() if on and self.device.type == "cuda"],
        )  # fmt: skip

    def placed(self, model: nn.Module) -> nn.Module:
        """Move the model to the device, in the memory layout."""
        model = model.to(self.device)
        return model.to(memory_format=self.layout) if self.layout == torch.channels_last else model

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    @contextmanager
    def of(self, *models: nn.Module) -> Iterator[None]:
        """Apply the settings to calls of the models, and of copies made of them, inside the block."""
        several = shares.count() > 1
        with ExitStack() as stack:
            stack.enter_context(shares.divided())
            for model in models:
                stack.enter_context(of_shares(model, self.config.norm_shares))
                if several or self.config.compiled:
                    model.forward = types.MethodType(self._forward_of(model), model)
                    stack.callback(delattr, model, "forward")
            yield

    def _forward_of(self, model: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
        """Return a method of the model's class, so that a copy of the model calls itself."""
        forward = self._own_forward(type(model))

        def divided(self: nn.Module, x: Tensor) -> Tensor:
            return shares.in_shares(self, partial(forward, self), x)

        return divided if shares.count() > 1 else forward

    def _own_forward(self, kind: type[nn.Module]) -> Callable[..., Any]:
        if not self.config.compiled:
            return kind.forward

        def forward(self: nn.Module, x: Tensor) -> Any:  # torch does not compile functions of its own, as Sequential's
            return kind.forward(self, x)

        return self._compiled.setdefault(kind, torch.compile(forward))
