"""The product bound: a network's L2 Lipschitz constant is at most the product of its layers' (Szegedy et al., 2014)."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from bench.core import registry
from bench.core.contracts import Batch, Certificate
from bench.core.errors import UserError
from bench.core.threat import TINY, TOLERANCE, ThreatModel
from certifiers.activations import Activation
from certifiers.graph import Layer
from certifiers.joins import Join
from certifiers.layers import Conv, Linear, Reshape, Scale, TransposedConv
from certifiers.linear_forms import Kernel
from certifiers.network import Network
from certifiers.network_certifier import NetworkCertifier
from certifiers.rounding import margin_tolerance

ROUNDING = 1 + 1e-9  # far above the error of singular values in float64


@registry.certifier("lipschitz")
@dataclass(frozen=True, kw_only=True)
class Lipschitz(NetworkCertifier):
    """A global Lipschitz constant as a product of spectral norms (Szegedy et al., 2014; Tsuzuku et al., 2018), L2.

    z_y - z_j changes by at most L_yj per unit of L2 distance, so the label does not change within the least (z_y - z_j)
    / L_yj of an image. L_yj = ||W_y - W_j|| L, with the last layer W and the constant L of the layers below it (sqrt(2)
    times that of the whole network if it does not end in a linear layer). Constants multiply from layer to layer and
    add up where a sum joins two paths. The constant of a linear layer is its largest singular value. That of a
    convolution is the largest singular value of the same convolution on a torus, which is an upper bound. That of an
    activation is its largest slope.

    radius: the certified distance, at most eps; the rounding error is subtracted from each margin z_y - z_j. The ball
    is not clamped to the range of pixels.
    """

    norms = ("L2",)

    def certify(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        network, label = self.checked_network(model, batch.x, threat), batch.y[:, None]
        eps, constants = threat.eps_like(batch.y)[:, None], margin_constants(network, batch.y)
        logits = model(batch.x).double()
        gaps = logits.gather(1, label) - logits
        margins = (gaps - eps * constants).scatter(1, label, torch.inf)
        least = margins.amin(dim=1).to(batch.x.dtype)
        error = margin_tolerance(network, batch.x, threat, least)
        distances = (gaps - error[:, None]).clamp(min=0) / constants.clamp(min=TINY)
        distances = distances / (1 + 2 * TOLERANCE)  # a threat model contains points at 1 + TOLERANCE times its eps
        radius = distances.scatter(1, label, torch.inf).amin(dim=1).minimum(eps.squeeze(1))
        return Certificate(radius, radius >= eps.squeeze(1), margins, error)


def margin_constants(network: Network, y: Tensor) -> Tensor:
    """Lipschitz constants of the margins z_y - z_j in the L2 norm of the image, (B,K) float64, for labels y (B,)."""
    last = network.nodes[-1]
    constants = layer_constants(network)
    if isinstance(last.layer, Linear):
        weight, below = last.layer.weight.double(), constants[last.inputs[0]]
    else:
        weight, below = torch.eye(network.classes, dtype=torch.float64, device=constants[-1].device), constants[-1]
    labels, rows = y.unique(return_inverse=True)
    norms = [torch.linalg.vector_norm(weight[label] - weight, dim=1) for label in labels.tolist()]
    return below * torch.stack(norms)[rows]


def layer_constants(network: Network) -> list[Tensor]:
    """The Lipschitz constant of each node's output as a function of the image, in order, float64."""
    constants: list[Tensor] = []
    for node in network.nodes:
        below = [constants[k] for k in node.inputs]
        if node.layer is None:
            constants.append(torch.ones((), dtype=torch.float64))
        elif isinstance(node.layer, Join):
            constants.append(node.layer.lipschitz(below))
        else:
            constants.append(below[0] * operator_norm(node.layer, network.nodes[node.inputs[0]].shape, node.name))
    return constants


def operator_norm(layer: Layer, shape: tuple[int, ...], name: str) -> Tensor | float:
    """The Lipschitz constant of a layer whose one input has `shape`."""
    match layer:
        case Linear():
            return torch.linalg.matrix_norm(layer.weight.double(), ord=2) * ROUNDING
        case Conv():
            return conv_norm(layer.kernel, (shape[1], shape[2]))
        case TransposedConv():  # it has the norm of the convolution that it transposes
            kernel, extra = layer.kernel, layer.output_padding
            height, width = (
                (shape[1 + k] - 1) * kernel.stride[k] - 2 * kernel.padding[k]
                + kernel.dilation[k] * (kernel.weight.shape[2 + k] - 1) + extra[k] + 1
                for k in (0, 1)
            )  # fmt: skip
            return conv_norm(kernel, (height, width))
        case Scale():
            return layer.weight.double().abs().max()
        case Activation():
            return layer.steepest
        case Reshape():
            return 1.0
    raise UserError(f"layer '{name}' ({type(layer).__name__}) is not supported by lipschitz")


def conv_norm(kernel: Kernel, size: tuple[int, int]) -> Tensor:
    """An upper bound of a convolution's spectral norm on images of `size`, close to it; a scalar in float64.

    The zero-padded image is put on a torus, in which no window that is read crosses the seam. The convolution is then a
    restriction of the one on the torus, whose norm the Fourier transform gives exactly (Sedghi, Gupta and Long, 2019):
    the largest singular value of the (O, C) matrices, one per frequency. A stride keeps every s-th output, so that the
    s frequencies that coincide there are columns of one matrix, divided by sqrt(s).
    """
    weight, groups = kernel.weight.double(), kernel.groups
    (down, across), stride = kernel.dilation, kernel.stride
    rows, columns = (s * math.ceil((n + 2 * p) / s) for n, p, s in zip(size, kernel.padding, stride, strict=True))
    torus = weight.new_zeros(*weight.shape[:2], rows, columns)
    torus[:, :, : down * weight.shape[2] : down, : across * weight.shape[3] : across] = weight
    symbol = torch.fft.fft2(torus).unflatten(0, (groups, -1))
    folded = symbol.unflatten(4, (stride[1], -1)).unflatten(3, (stride[0], -1)).permute(4, 6, 0, 1, 2, 3, 5)
    half = folded[:, : columns // stride[1] // 2 + 1]  # the other frequencies of a real kernel are conjugates
    return torch.linalg.matrix_norm(half.flatten(4), ord=2).max() / math.sqrt(math.prod(stride)) * ROUNDING
