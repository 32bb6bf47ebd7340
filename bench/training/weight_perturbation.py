"""AWP: adversarial weight perturbation (Wu et al., 2020), around the gradient of any loss."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Loss = Callable[[], Tensor]  # a forward pass: the loss at the weights that the model has when it is called


@contextmanager
def perturbed_weights(model: nn.Module, parameters: Iterable[nn.Parameter], loss: Loss, gamma: float) -> Iterator[None]:
    """Inside the block the weights are w + gamma ||w|| g / ||g||, layer by layer, for the gradient g of the loss.

    Wu et al. (2020), Eq. 10 with one step: only tensors with more than one dimension move. The pass that gives g
    leaves no trace in the model's buffers. With gamma = 0 nothing happens.
    """
    if gamma == 0:
        yield
        return
    weights = [p for p in parameters if p.dim() > 1 and p.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
        for w, g in zip(weights, gradients, strict=True):
            if g is not None:
                w.add_(g * (gamma * w.norm() / g.norm().clamp(min=1e-20)))
    torch.clear_autocast_cache()  # it may hold the weights in bfloat16
    try:
        yield
    finally:
        with torch.no_grad():
            for w, value in zip(weights, before, strict=True):
                w.copy_(value)
        torch.clear_autocast_cache()
