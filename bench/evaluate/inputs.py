"""Checks the arguments of `bench.api.evaluate`, and sets torch's state for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.core.classifier import Classifier, as_classifier
from bench.core.contracts import frozen
from bench.core.errors import UserError
from bench.core.threat import ThreatModel


def checked_model(model: nn.Module) -> Classifier:
    """Wrap the model in a Classifier; a copy if it was made in inference mode. UserError if it is no nn.Module."""
    if not isinstance(model, nn.Module):
        name = type(model).__name__
        raise UserError(f"evaluate takes a torch.nn.Module, not {name}; call a function in the forward of a module")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise UserError("evaluate cannot be called inside torch.autocast; use autocast in the model's forward")
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        with torch.inference_mode(False):
            model = deepcopy(model)
    return as_classifier(model)


@contextmanager
def evaluation_state(classifier: Classifier) -> Iterator[None]:
    """Enable gradients, leave inference mode and use float32 as default dtype inside the block; restore all afterwards.

    The model's buffers are restored too, because batch norm that was left in train mode changes them.
    """
    dtype = torch.get_default_dtype()
    with torch.inference_mode(False), torch.enable_grad():
        before = [(buffer, buffer.clone()) for buffer in classifier.buffers()]
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            with torch.no_grad():
                for buffer, value in before:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


def checked_images(
    classifier: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, batch_size: int
) -> tuple[Tensor, Tensor, ThreatModel, int]:
    """Check the arguments: images (N,C,H,W) as float32, labels (N,), threat model with a float eps, number of classes.

    UserError if they do not fit together.
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point() or x.numel() == 0:
        raise UserError("evaluate takes images as a tensor (N,C,H,W) of floating point, N at least 1")
    if not isinstance(y, Tensor) or y.shape != (len(x),) or y.dtype != torch.int64:
        raise UserError(f"evaluate takes {len(x)} labels as a tensor of type int64")
    if not (x.min() >= 0 and x.max() <= 1):
        raise UserError("evaluate takes images in [0, 1]; put a normalisation into the model")
    if not isinstance(threat, ThreatModel):
        raise UserError(f"evaluate takes a threat model, as in ThreatModel('Linf', 8 / 255), not {threat!r}")
    if batch_size < 1 or not isinstance(threat.eps, float | int):
        raise UserError("evaluate takes a batch_size of at least 1, and one eps (a float) for all examples")
    threat = replace(threat, eps=float(threat.eps))
    threat.check_eps(x.shape[1:])
    # inference tensors cannot be used in autograd, and their copies can
    x, y = x.detach().clone().float(), y.clone()
    try:
        with frozen(classifier), torch.no_grad():
            classes = classifier(x[:2]).shape[1]
    except UserError as error:
        if x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
            raise UserError(
                f"evaluate takes images (N,C,H,W), and the shape {tuple(x.shape)} looks like (N,H,W,C); pass "
                "x.permute(0, 3, 1, 2)"
            ) from error
        raise
    if y.min() < 0 or y.max() >= classes:
        raise UserError(f"labels must be 0 to {classes - 1}, because the model has {classes} logits")
    return x, y, threat, classes
