"""Weights that another project trained, loaded by name, or by order and shape where the names differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.core.errors import UserError
from bench.training.checkpoints import State, read_state

Layer = tuple[str, dict[str, Tensor]]  # its name, and its tensors by kind (weight, bias, running_mean ...)


def load_foreign(model: nn.Module, path: Path) -> dict[str, str]:
    """Load another project's weights: {our name: the file's name} where those differ.

    Names that agree are matched by name. Else the file's layers must match ours in order, in the kind of each tensor
    (weight, bias, running mean ...) and in shape; safetensors keep no order, so there each layer must fit one place
    only. Anything that could be read in two ways is refused with a UserError.
    """
    state = {_plain_name(key): value for key, value in read_state(path).items()}
    ours = model.state_dict()
    ours = {key: value for key, value in ours.items() if not key.endswith("num_batches_tracked")}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    if set(ours) == set(state):
        mapping = {key: key for key in ours}
    else:
        mapping = _match_layers(path, _layers(ours), _layers(state), ordered=path.suffix != ".safetensors")
    for key, name in mapping.items():
        if ours[key].shape != state[name].shape:
            raise UserError(
                f"checkpoint {path} does not fit the model: {name} is {tuple(state[name].shape)}, "
                f"the model's {key} is {tuple(ours[key].shape)}; give the architecture it was trained with (--model)"
            )
        if not state[name].is_floating_point() or not state[name].isfinite().all():
            raise UserError(f"checkpoint {path}: {name} must hold finite floating-point numbers")
    missing = model.load_state_dict({key: state[name] for key, name in mapping.items()}, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing)  # a counter that evaluation never reads
    return {key: name for key, name in mapping.items() if key != name}


def _plain_name(key: str) -> str:
    return key.removeprefix("module.").removeprefix("_orig_mod.")


def _layers(state: State) -> list[Layer]:
    """(layer, {kind of tensor: tensor}) in order of first appearance."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        layers.setdefault(layer, {})[kind] = value
    return list(layers.items())


def _match_layers(path: Path, ours: list[Layer], theirs: list[Layer], ordered: bool) -> dict[str, str]:
    if len(ours) != len(theirs):
        raise UserError(
            f"checkpoint {path} has {len(theirs)} layers with weights, the model {len(ours)}; "
            "give the architecture it was trained with (--model)"
        )
    if {name for name, _ in ours} & {name for name, _ in theirs}:
        raise UserError(
            f"checkpoint {path} shares some layer names with the model but not all, so its order may not be trusted; "
            "rename its keys to the model's"
        )
    if not ordered:
        theirs = _in_our_order(path, ours, theirs)
    mapping: dict[str, str] = {}
    for (our_name, our_layer), (their_name, their_layer) in zip(ours, theirs, strict=True):
        if set(our_layer) != set(their_layer):
            raise UserError(
                f"checkpoint {path} does not fit the model: {their_name} has {', '.join(their_layer)}, "
                f"the model's {our_name} has {', '.join(our_layer)}; give its architecture (--model)"
            )
        mapping |= {f"{our_name}.{kind}": f"{their_name}.{kind}" for kind in our_layer}
    return mapping


def _in_our_order(path: Path, ours: list[Layer], theirs: list[Layer]) -> list[Layer]:
    """Their layers in our order, by kinds and shapes alone; refused where two layers look alike."""

    def look(layer: dict[str, Tensor]) -> tuple[Any, ...]:
        return tuple(sorted((kind, tuple(value.shape)) for kind, value in layer.items()))

    by_look = {look(layer): (name, layer) for name, layer in theirs}
    looks = [look(layer) for _, layer in ours]
    if len(by_look) < len(theirs) or len(set(looks)) < len(looks):
        raise UserError(
            f"checkpoint {path} has layers of the same shapes under names unlike the model's, and safetensors keep "
            "no order to tell them apart; rename its keys to the model's, or save it with torch.save"
        )
    if set(by_look) != set(looks):
        name = next(name for name, layer in theirs if look(layer) not in looks)
        shapes = {kind: tuple(value.shape) for kind, value in dict(theirs)[name].items()}
        raise UserError(f"checkpoint {path} does not fit the model: no layer of it has {name}'s {shapes}; give --model")
    return [by_look[each] for each in looks]
