"""Wraps a user's model for attacks and measurements: float32 images in, float32 logits out, finite gradients."""

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.core.failures import failures_of

NOT_FINITE = (
    "the model's input gradient was not finite: NaN counts as 0, and an infinite entry as the largest finite one"
)


class Classifier(nn.Module):
    """Wraps a model that maps images (B,C,H,W) in [0,1] to logits (B,K), K >= 2.

    - The model gets a contiguous copy of the images, in the precision of its weights if it does not accept float32, and
      under the default dtype that was set when it was wrapped. It may write into the copy.
    - The logits are float32. They are differentiable: if they do not depend on the images, the gradient is zero.
    - Entries of the input gradient that are not finite are replaced, with a warning (see NOT_FINITE).
    - Modules in train mode inside a module in eval mode, as in Monte Carlo dropout, stay in train mode
      (`random_modules`). A model that is in train mode itself is put into eval mode as a whole.

    UserError if the model fails, or returns something else.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.random_modules = _left_in_train_mode(model)
        self._default_dtype = torch.get_default_dtype()
        weights = (*model.parameters(), *model.buffers())
        own = {weight.dtype for weight in weights if weight.is_floating_point()} - {torch.float32}
        self._dtype = None if own else torch.float32  # None: not yet known
        self._dtypes = [torch.float32, *sorted(own, key=str)]

    def __getattr__(self, name: str) -> Any:
        """The model's own attributes, for attacks that look inside it."""
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    def __getitem__(self, index: Any) -> Any:
        """A layer of the model, if it is an nn.Sequential."""
        layers: Any = self.model
        return layers[index]

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for module in self.random_modules.values():
            module.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        with failures_of(f"the model, called on images of shape {tuple(x.shape)},"):
            self._dtype = self._dtype or self._accepted_dtype(x)
            images = x.clone(memory_format=torch.contiguous_format)
            differentiate = x.requires_grad and torch.is_grad_enabled()
            if differentiate:
                images.register_hook(_finite)
            logits = self._call(images.to(self._dtype))
        if not isinstance(logits, Tensor) or logits.shape[:1] != x.shape[:1] or logits.dim() != 2:
            what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"the model must return logits of shape ({len(x)}, classes), not {what}")
        if logits.shape[1] < 2:
            raise UserError(
                "the model returns one logit per image, and robust-bracket takes one per class; for a logit z of class "
                "1 return torch.cat([torch.zeros_like(z), z], dim=1)"
            )
        logits = logits.float()
        return _Connected.apply(logits, x) if differentiate else logits

    def _call(self, images: Tensor) -> Any:
        ours = torch.get_default_dtype()
        if ours == self._default_dtype:
            return self.model(images)
        torch.set_default_dtype(self._default_dtype)
        try:
            return self.model(images)
        finally:
            torch.set_default_dtype(ours)

    @torch.no_grad()
    def _accepted_dtype(self, x: Tensor) -> torch.dtype:
        """Return the first dtype that the model accepts: float32, then those of its weights."""
        for dtype in self._dtypes:
            try:
                self._call(x.to(dtype, copy=True))
            except Exception:  # a model may raise anything
                continue
            return dtype
        return torch.float32


class _Connected(torch.autograd.Function):
    """The logits, with a gradient of zero for images on which they do not depend."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], torch.zeros_like(ctx.saved_tensors[0])


def _finite(gradient: Tensor | None) -> Tensor | None:
    """Replace NaN by 0, and infinity by the example's largest finite entry (1 if that is zero), in (B,...)."""
    if gradient is None or (finite := gradient.isfinite()).all():  # None: operations without a derivative
        return None
    warnings.warn(NOT_FINITE, stacklevel=2)
    size = gradient.abs().masked_fill(~finite, 0).flatten(1).amax(dim=1)
    size = torch.where(size > 0, size, 1).reshape(-1, *[1] * (gradient.dim() - 1))
    return torch.where(finite | gradient.isnan(), gradient.nan_to_num(nan=0.0), gradient.sign() * size)


def is_training(module: nn.Module) -> bool:
    """Whether a module is in train mode; frozen TorchScript has no modes."""
    return bool(getattr(module, "training", False))


def _left_in_train_mode(model: nn.Module) -> dict[str, nn.Module]:
    """Find modules, by name, that are in train mode inside a module in eval mode and behave differently there.

    A layer that was replaced after `model.eval()` is in train mode too.
    """
    left: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not is_training(module):
            inside = {f"{name}.{child}" if name else child: part for child, part in module.named_modules() if child}
            left |= {child: part for child, part in inside.items() if is_training(part) and _depends_on_mode(part)}
    return left


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether a method of the module's class, or of one that it inherits from, reads `training`."""
    kinds = [kind for kind in type(module).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    methods = [method for kind in kinds for method in vars(kind).values() if inspect.isfunction(method)]
    return isinstance(module, torch.jit.ScriptModule) or any("training" in each.__code__.co_names for each in methods)


def as_classifier(model: nn.Module) -> Classifier:
    """Wrap the model in a Classifier, unless it is one."""
    return model if isinstance(model, Classifier) else Classifier(model)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's model, without the Classifier around it."""
    return model.model if isinstance(model, Classifier) else model
