"""Estimates of a network's L2 Lipschitz constant: AutoLip, a bound, and SeqLip, which combines neighbouring layers.

Virmaux and Scaman (2018), used in Table 4.5 of the thesis. AutoLip is the product of the layers' constants
(certifiers/lipschitz.py). SeqLip cuts each inner linear map between two ReLUs in two halves by its singular values and
replaces ||W_2|| ||W_1|| by the largest norm of W_2 D W_1 over the 0-1 diagonal matrices D of a ReLU. That maximum is
found by ascent from several starts, so SeqLip estimates a bound from below, and is not a certificate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jacrev

from bench.core import seeds
from bench.core.errors import UserError
from bench.core.modes import mode_of
from certifiers.lipschitz import layer_constants
from certifiers.network import Network

SWEEPS = 100  # of the ascent, at most
POOLS = (nn.MaxPool2d,)


class Constants(NamedTuple):
    """Estimates of one network."""

    autolip: float
    seqlip: float


def constants(model: nn.Module, image: Tensor, *, starts: int = 5, seed: int = 0) -> Constants:
    """For an nn.Sequential of linear layers, ReLUs and max pooling without overlap, and images like `image` (1,C,H,W).

    UserError for any other model, and for models that certifiers/lipschitz.py refuses (AutoLip).
    """
    with mode_of(model, training=False), torch.no_grad():
        autolip = float(layer_constants(Network(model, image))[-1])
    generator = seeds.generator(image.device, seed, "seqlip")
    runs, bound = linear_runs(model, image), 1.0
    for matrices in runs:
        bound *= sequence_norm(matrices, starts, generator)
    return Constants(autolip, bound)


def linear_runs(model: nn.Module, image: Tensor) -> list[list[Tensor]]:
    """The Jacobians (out, in) of the maps between ReLUs, float64, in runs that pooling separates.

    Pooling without overlap has the constant 1, but a maximum is not a ReLU, so the norms before and after it are
    multiplied.
    """
    model, runs = copy.deepcopy(model).double().eval(), list[list[Tensor]]([[]])
    part: list[nn.Module] = []
    x = image.double()

    def close() -> None:
        nonlocal x, part
        layers = nn.Sequential(*part)
        point = x

        def apply(flat: Tensor) -> Tensor:
            return layers(flat.reshape(point.shape)).flatten()

        if any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in part):
            jacobian = jacrev(apply)(point.flatten())
            assert isinstance(jacobian, Tensor)
            runs[-1].append(jacobian.detach())
        with torch.no_grad():
            x = layers(x)
        part = []

    for layer in leaves(model):
        if isinstance(layer, nn.ReLU):
            close()
        elif isinstance(layer, POOLS):
            if part:
                close()
            if layer.stride != layer.kernel_size or layer.padding not in (0, (0, 0)):
                raise UserError("SeqLip is computed for max pooling without overlap only")
            x = layer(x)
            runs.append([])
        elif isinstance(layer, nn.Linear | nn.Conv2d | nn.Flatten):
            part.append(layer)
        else:
            raise UserError(f"SeqLip is not computed for a layer {type(layer).__name__}")
    close()
    return [run for run in runs if run]


def leaves(model: nn.Module) -> list[nn.Module]:
    """The layers of an nn.Sequential in order."""
    if not isinstance(model, nn.Sequential):
        raise UserError(f"SeqLip is computed for an nn.Sequential only, not for a {type(model).__name__}")
    found: list[nn.Module] = []
    for layer in model:
        found += leaves(layer) if isinstance(layer, nn.Sequential) else [layer]
    return found


def sequence_norm(matrices: Sequence[Tensor], starts: int, generator: torch.Generator) -> float:
    """SeqLip of W_n D_(n-1) ... D_1 W_1: the product over the ReLUs of the norms of their half maps."""
    svds = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    if len(svds) == 1:
        return float(svds[0].S[0])
    bound = 1.0
    for k in range(len(svds) - 1):
        below, above = svds[k], svds[k + 1]
        weight_below = below.S if k == 0 else below.S.sqrt()
        weight_above = above.S if k + 1 == len(svds) - 1 else above.S.sqrt()
        left, right = weight_above[:, None] * above.Vh, below.U * weight_below
        bound *= largest_masked_norm(left, right, starts, generator)
    return bound


def largest_masked_norm(left: Tensor, right: Tensor, starts: int, generator: torch.Generator) -> float:
    """The largest ||left D right|| over 0-1 diagonal matrices D found by ascent from `starts` random ones and from I.

    For fixed singular vectors u, v the best D keeps the units k with (u^T left)_k (right v)_k > 0; then u and v are
    those of the new matrix. The norm never falls.
    """
    size, best = left.shape[1], 0.0
    first = torch.ones(1, size, dtype=left.dtype, device=left.device)
    random = torch.rand(starts, size, generator=generator, device=left.device) < 0.5
    for mask in torch.cat([first, random.to(left.dtype)]):
        reached, now = -math.inf, mask
        for _ in range(SWEEPS):
            u, s, vh = torch.linalg.svd((left * now) @ right, full_matrices=False)
            if float(s[0]) <= reached * (1 + 1e-9):
                break
            reached = float(s[0])
            now = ((u[:, 0] @ left) * (right @ vh[0]) > 0).to(left.dtype)
        best = max(best, reached)
    return best
