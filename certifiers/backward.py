"""Backward bound propagation: converts linear bounds in a layer's output into linear bounds in the image."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from certifiers.activations import Activation
from certifiers.input_regions import Region
from certifiers.joins import Join
from certifiers.layers import Affine
from certifiers.linear_forms import LinearForms
from certifiers.network import Network
from certifiers.relaxations import LinearRelaxation, Relaxations


@dataclass(frozen=True)
class BackwardBound:
    """T bounds that are linear in the outputs of some nodes, with constants (B|1,T).

    forms: the linear forms of each node's output. Their sum plus `lower` is a lower bound and, plus `upper`, an upper
    bound. `upper` is None if a relaxation on the path was not parallel, because an upper bound then has other
    coefficients. magnitude: the sum of the absolute values of what each layer adds to `lower`. peak: the largest
    number of coefficients held at once since the first activation on the path (before it they are shared by all
    examples).
    """

    forms: dict[int, LinearForms]
    lower: Tensor | float = 0.0
    upper: Tensor | float | None = 0.0
    magnitude: Tensor | float = 0.0
    peak: int = 0

    def of_units(self, units: Tensor) -> BackwardBound:
        """Select `units` (B,T) for each example from bounds that are the same for all examples."""

        def chosen(constant: Tensor | float) -> Tensor | float:
            return constant[0][units] if isinstance(constant, Tensor) else constant

        upper = None if self.upper is None else chosen(self.upper)
        forms = {k: each.of_units(units) for k, each in self.forms.items()}
        return BackwardBound(forms, chosen(self.lower), upper, chosen(self.magnitude), self.peak)

    def concretize(self, regions: Mapping[int, Region]) -> tuple[Tensor, Tensor | None]:
        """The minimum and (if `upper` is given) the maximum over the regions of the nodes' outputs, (B,T) each."""
        lower, upper = self.lower, self.upper
        for k, forms in self.forms.items():
            center, radius = regions[k].concretize(forms)
            lower = lower + (center - radius)
            upper = None if upper is None else upper + (center + radius)
        assert isinstance(lower, Tensor)
        assert upper is None or isinstance(upper, Tensor)
        return lower, upper


def propagate_backward(
    network: Network,
    start: BackwardBound,
    relaxations: Relaxations,
    until: Collection[int] = (0,),
    *,
    passed: dict[int, LinearForms] | None = None,
) -> BackwardBound:
    """Replace each node by its inputs, the last node first, until only the nodes of `until` (and the image) are left.

    relaxations: one for each activation on the path (thesis, Eq. 3.7). passed: receives the forms of each activation's
    output.
    """
    pending = dict(start.forms)
    arrived: dict[int, LinearForms] = {}
    lower, upper, magnitude, peak = start.lower, start.upper, start.magnitude, start.peak
    passed_activation = peak > 0
    for k in range(max(pending), -1, -1):
        forms = pending.pop(k, None)
        if forms is None:
            continue
        node = network.nodes[k]
        if k == 0 or k in until:
            arrived[k] = forms
            continue
        if isinstance(node.layer, Affine):
            forms, constant = node.layer.backward(forms, network.nodes[node.inputs[0]].shape)
            parts: Sequence[LinearForms | None] = [forms]
            lower, upper = lower + constant, None if upper is None else upper + constant
            magnitude = magnitude + (constant.abs() if isinstance(constant, Tensor) else abs(constant))
        elif isinstance(node.layer, Activation):
            if passed is not None:
                passed[k] = forms
            forms, below, above = _relaxed(forms, relaxations[k], both=upper is not None)
            lower, upper = lower + below, None if upper is None or above is None else upper + above
            magnitude = magnitude + below.abs()
            passed_activation, parts = True, [forms]
        else:
            assert isinstance(node.layer, Join)
            parts = node.layer.backward(forms, [network.nodes[i].shape for i in node.inputs])
        peak = max(peak, forms.coefficients.numel()) if passed_activation else 0
        for i, part in zip(node.inputs, parts, strict=True):
            if part is not None:
                pending[i] = pending[i].plus(part) if i in pending else part
    return BackwardBound(arrived, lower, upper, magnitude, peak)


def _relaxed(
    forms: LinearForms, relaxation: LinearRelaxation, *, both: bool
) -> tuple[LinearForms, Tensor, Tensor | None]:
    """Linear forms of an activation's output as forms of its input, and the constants of the lower (and upper) bound.

    For a lower bound, a positive coefficient takes the lower line and a negative one the upper line.
    """
    negative = forms.negative_part()
    spread = negative.dot(relaxation.gap)
    below = spread if relaxation.lower_bias is None else spread + forms.dot(relaxation.lower_bias)
    scaled = forms.scaled(relaxation.lower_slope)
    if relaxation.multiplier is not None:
        scaled = scaled.with_coefficients(scaled.coefficients + scaled.align(relaxation.multiplier))
    if relaxation.parallel:
        return scaled, below, forms.dot(relaxation.upper_bias) - spread if both else None
    return scaled.plus(negative.scaled(relaxation.upper_slope - relaxation.lower_slope)), below, None
