"""Weights that another project trained, loaded by name, or by order and shape if the names differ."""

from pathlib import Path

from torch import Tensor, nn

from bench.core.errors import UserError
from bench.training.checkpoints import State, read_state

Layer = tuple[str, dict[str, Tensor]]  # its name, and its tensors by kind (weight, bias, running_mean ...)
GIVE_MODEL = "give the architecture that it was trained with (--model)"


def load_foreign(model: nn.Module, path: Path) -> dict[str, str]:
    """Load another project's weights: {our name: the file's name} of the tensors whose names differ.

    If not all names agree, the file's layers must match ours in order, in the kinds of their tensors and in shape.
    safetensors have no order, so each of their layers must match exactly one of ours. UserError otherwise.
    """
    ours = _without_counters(model.state_dict())
    in_file = read_state(path).items()
    theirs = _without_counters(
        {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in in_file}
    )
    if set(ours) == set(theirs):
        mapping = {key: key for key in ours}
    else:
        mapping = _match_layers(path, _layers(ours), _layers(theirs), ordered=path.suffix != ".safetensors")
    for key, name in mapping.items():
        if ours[key].shape != theirs[name].shape:
            raise UserError(
                f"checkpoint {path} does not fit the model: {name} is {tuple(theirs[name].shape)}, "
                f"the model's {key} is {tuple(ours[key].shape)}; {GIVE_MODEL}"
            )
        if not theirs[name].is_floating_point() or not theirs[name].isfinite().all():
            raise UserError(f"checkpoint {path}: {name} must hold finite floating-point numbers")
    model.load_state_dict(model.state_dict() | {key: theirs[name] for key, name in mapping.items()}, strict=True)
    return {key: name for key, name in mapping.items() if key != name}


def _without_counters(state: State) -> State:
    """Without batch norm's counters of batches, which evaluation never reads."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _layers(state: State) -> list[Layer]:
    """The layers in order of first appearance."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        layers.setdefault(layer, {})[kind] = value
    return list(layers.items())


def _match_layers(path: Path, ours: list[Layer], theirs: list[Layer], ordered: bool) -> dict[str, str]:
    """{our name: their name} of each tensor."""
    if len(ours) != len(theirs):
        raise UserError(f"checkpoint {path} has {len(theirs)} layers with weights, the model {len(ours)}; {GIVE_MODEL}")
    if {name for name, _ in ours} & {name for name, _ in theirs}:
        raise UserError(
            f"checkpoint {path} shares some layer names with the model but not all, so its order is not reliable; "
            "rename its keys to the model's"
        )
    if not ordered:
        theirs = _in_our_order(path, ours, theirs)
    mapping: dict[str, str] = {}
    for (our_name, our_layer), (their_name, their_layer) in zip(ours, theirs, strict=True):
        if set(our_layer) != set(their_layer):
            raise UserError(
                f"checkpoint {path} does not fit the model: {their_name} has {', '.join(their_layer)}, "
                f"the model's {our_name} has {', '.join(our_layer)}; {GIVE_MODEL}"
            )
        mapping |= {f"{our_name}.{kind}": f"{their_name}.{kind}" for kind in our_layer}
    return mapping


def _in_our_order(path: Path, ours: list[Layer], theirs: list[Layer]) -> list[Layer]:
    """Their layers in our order, by kinds and shapes; UserError if two layers have the same."""
    by_shapes = {_shapes(layer): (name, layer) for name, layer in theirs}
    wanted = [_shapes(layer) for _, layer in ours]
    if len(by_shapes) < len(theirs) or len(set(wanted)) < len(wanted):
        raise UserError(
            f"checkpoint {path} has layers of equal shapes whose names are not the model's, and safetensors have no "
            "order to tell them apart; rename its keys to the model's, or save it with torch.save"
        )
    if unmatched := set(by_shapes) - set(wanted):
        name = next(name for name, layer in theirs if _shapes(layer) in unmatched)
        raise UserError(
            f"checkpoint {path} does not fit the model: none of its layers has {name}'s shapes; {GIVE_MODEL}"
        )
    return [by_shapes[shapes] for shapes in wanted]


def _shapes(layer: dict[str, Tensor]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((kind, tuple(value.shape)) for kind, value in layer.items()))
