"""The linear region of a ReLU network around an image: distances to its borders and to the decision boundaries.

A network is linear where no activation changes its piece. Its gradient there follows from backward propagation through
the active pieces, for the inputs of all activations at once.
"""

import torch
from torch import Tensor, nn

from bench.core.contracts import mode_of
from bench.core.errors import UserError
from bench.core.shares import in_shares
from bench.core.threat import DUAL_ORDER, Norm
from certifiers.activations import Rectifier
from certifiers.backward import BackwardBound, propagate_backward
from certifiers.linear_forms import LinearForms, margin_specification
from certifiers.network import Network
from certifiers.patch_forms import identity_forms
from certifiers.relaxations import LinearRelaxation


def plane_distances(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Distances of images x (B,C,H,W) to the planes on which a ReLU switches, (B,U), and on which z_y = z_j, (B,K-1).

    Croce, Andriushchenko and Hein (2019), Section 3: |z| / |grad z| of the linear function that holds at x, without the
    box of pixels; for the decisions (z_y - z_j) / |grad (z_y - z_j)|, negative where j is predicted; inf where the
    gradient is zero. U: the inputs of all activations, which must be ReLUs or made of ReLUs; UserError otherwise.
    Differentiable in the weights. Batch norm is in eval mode.
    """
    return in_shares(model, lambda x, y: _plane_distances(model, x, y, norm), x, y)


def _plane_distances(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    with mode_of(model, training=False):
        network = Network(model, x[:1])
        values = network.values(x)
        pieces: dict[int, LinearRelaxation] = {}
        switching = []
        for k in network.activations:
            activation, node = network.activation(k), network.nodes[k]
            if not isinstance(activation, Rectifier):
                raise UserError(f"{activation.name} has no linear regions; use ReLU, leaky ReLU or max pooling")
            z = values[node.inputs[0]]
            units = identity_forms(node.shape, range(node.shape[0]), network.image)
            switching.append(_distance(z.flatten(1).abs(), _gradient(network, node.inputs[0], units, pieces), norm))
            slope = torch.where(z > 0, 1.0, activation.leak).to(z.dtype)
            pieces[k] = LinearRelaxation(slope, None, slope, torch.zeros_like(slope))
        others, forms = margin_specification(y, network.classes, network.image)
        logits = values[network.output]
        margins = logits.gather(1, y[:, None]) - logits.gather(1, others)
        decisions = _distance(margins, _gradient(network, network.output, forms, pieces), norm)
    return torch.cat(switching, dim=1), decisions


def _gradient(network: Network, k: int, forms: LinearForms, pieces: dict[int, LinearRelaxation]) -> LinearForms:
    """The gradient with respect to the image of linear forms of the output of node k."""
    return propagate_backward(network, BackwardBound({k: forms}, upper=None), pieces).forms[0]


def _distance(value: Tensor, gradient: LinearForms, norm: Norm) -> Tensor:
    length = gradient.norm(DUAL_ORDER[norm])
    return torch.where(length > 0, value / torch.where(length > 0, length, 1), torch.inf)
