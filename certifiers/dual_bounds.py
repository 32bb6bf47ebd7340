"""Lower bounds as functions of slopes and multipliers, and their supergradients (alpha- and beta-CROWN).

A lower bound by linear relaxation is the value of a Lagrange dual function of the slopes of the lower lines and of the
multipliers of splits. Its supergradient needs no automatic differentiation: it follows from the values of all layers at
the solution of the relaxed problem, which one forward pass computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from certifiers.activations import Activation
from certifiers.backward import BackwardBound, propagate_backward
from certifiers.input_regions import Region
from certifiers.joins import Join
from certifiers.layers import Affine
from certifiers.linear_forms import LinearForms
from certifiers.network import Network
from certifiers.relaxations import Relaxations


@dataclass(frozen=True)
class DualBound:
    """Lower bounds (n,) of one linear form of each of n problems.

    coefficients: of each activation's output on the path, (n,*shape). image (n,C,H,W): where the bound is attained.
    """

    value: Tensor
    coefficients: Mapping[int, Tensor]
    image: Tensor


def dual_bound(
    network: Network, forms: Mapping[int, LinearForms], region: Region, relaxations: Relaxations
) -> DualBound:
    """The lower bound of one linear form (n,1) of the outputs of some nodes, over the region of each problem."""
    passed: dict[int, LinearForms] = {}
    bound = propagate_backward(network, BackwardBound(dict(forms), upper=None), relaxations, passed=passed)
    value, _ = bound.concretize({0: region})
    coefficients = {k: form.dense().coefficients.squeeze(1) for k, form in passed.items()}
    return DualBound(value.squeeze(1), coefficients, region.minimizer(bound.forms[0]))


def relaxed_inputs(network: Network, bound: DualBound, relaxations: Relaxations) -> dict[int, Tensor]:
    """The inputs (n,*shape) of the activations at the solution of the relaxed problem.

    At the solution, each activation takes the value of the line that the bound uses: the lower line where its
    coefficient is positive, else the upper line.
    """
    outputs: dict[int, Tensor] = {0: bound.image}
    inputs: dict[int, Tensor] = {}
    for k, node in enumerate(network.nodes[: max(bound.coefficients, default=0) + 1]):
        if k == 0:
            continue
        if isinstance(node.layer, Join):
            outputs[k] = node.layer.linear([outputs[i] for i in node.inputs])
        elif isinstance(node.layer, Activation):
            inputs[k] = z = outputs[node.inputs[0]]
            line, coefficients = relaxations[k], bound.coefficients.get(k)
            sign = torch.zeros_like(z) if coefficients is None else coefficients.sign()
            # (1 + sign) / 2 instead of torch.where, which is slow on a CPU; a coefficient of zero takes the mean
            slope = torch.lerp(line.upper_slope.expand_as(sign), line.lower_slope.expand_as(sign), (sign + 1) / 2)
            lower_bias = 0.0 if line.lower_bias is None else line.lower_bias
            outputs[k] = slope * z + line.upper_bias + (lower_bias - line.upper_bias) * ((sign + 1) / 2)
        else:
            assert isinstance(node.layer, Affine)
            outputs[k] = node.layer.apply(outputs[node.inputs[0]], node.layer.weight, node.layer.bias)
    return inputs
