"""Loads weights that another project trained, matched by name, or by shape if no name agrees."""

import re
from itertools import pairwise, product
from pathlib import Path

from torch import Tensor, nn

from bench.core.errors import UserError
from bench.training.checkpoints import State, read_state
from bench.training.public_layouts import our_layer_names

Layers = dict[str, dict[str, Tensor]]  # by name, each with its tensors by kind (weight, bias, running_mean ...)
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
GIVE_MODEL = "give the architecture that it was trained with (--model)"
COMPILED = "_orig_mod."  # the prefix that torch.compile adds to a module's names


def load_foreign(model: nn.Module, path: Path, key: str | None = None) -> dict[str, str]:
    """Load another project's weights; returns {our name: the file's name} of each tensor, empty if the names agree.

    key: of the state dict in a file that holds several.

    Common prefixes of all names, in the file or in ours, are ignored. If the names then agree, tensors are matched by
    name, and so they are if the file has the names of a public residual network (public_layouts.py). If no layer's name
    agrees, each layer of the file is matched by the shapes of its tensors; layers of equal shapes must be numbered, in
    the file and in the model, in the order in which they are listed. UserError for anything else.
    """
    ours = _without_counters(model.state_dict())
    state = _without_counters(read_state(path, key))
    in_file = {key.replace(COMPILED, ""): key for key in state}
    theirs = {name: state[key] for name, key in in_file.items()}
    if len(theirs) < len(state):
        raise UserError(
            f"checkpoint {path} has layers twice, with and without {COMPILED}; save model.state_dict() alone"
        )
    agreeing = _by_name(path, ours, theirs)
    mapping = agreeing or _by_layout(ours, theirs) or _by_shape(path, _layers(ours), _layers(theirs))
    for key, name in mapping.items():
        if ours[key].shape != theirs[name].shape:
            raise UserError(
                f"checkpoint {path} does not fit the model: {name} is {tuple(theirs[name].shape)}, "
                f"the model's {key} is {tuple(ours[key].shape)}; {GIVE_MODEL}"
            )
        if not theirs[name].is_floating_point() or not theirs[name].isfinite().all():
            raise UserError(f"checkpoint {path}: {name} must hold finite floating-point numbers")
    model.load_state_dict(model.state_dict() | {key: theirs[name] for key, name in mapping.items()}, strict=True)
    return {} if agreeing else {key: in_file[name] for key, name in mapping.items()}


def _without_counters(state: State) -> State:
    """Without batch norm's counters of batches, which evaluation never reads."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _by_name(path: Path, ours: State, theirs: State) -> dict[str, str] | None:
    """{our name: their name} of each tensor if all names agree up to prefixes; None if no layer's name does."""
    shared: set[str] = set()
    for our_prefix, their_prefix in product(_common_prefixes(ours), _common_prefixes(theirs)):
        our_names = {key.removeprefix(our_prefix): key for key in ours}
        their_names = {key.removeprefix(their_prefix): key for key in theirs}
        if set(our_names) == set(their_names):
            return {key: their_names[name] for name, key in our_names.items()}
        in_both = {_layer(name) for name in our_names} & {_layer(name) for name in their_names}
        if len(in_both - {""}) > len(shared):
            shared, missing, extra = in_both, set(our_names) - set(their_names), set(their_names) - set(our_names)
    if not shared:
        return None
    details = [f"it has no {min(missing)}"] if missing else []
    details += [f"the model has no {min(extra)}"] if extra else []
    raise UserError(
        f"checkpoint {path} shares some layer names with the model but not all ({', '.join(details)}); {GIVE_MODEL}, "
        "or rename its keys to the model's"
    )


def _by_layout(ours: State, theirs: State) -> dict[str, str]:
    """{our name: their name} of each tensor if the file has the layers of our network under public names, else {}."""
    for prefix in _common_prefixes(theirs):
        layers = our_layer_names({_layer(key.removeprefix(prefix)) for key in theirs})
        found = {key: f"{prefix}{layers.get(_layer(key), '')}.{key.rpartition('.')[2]}" for key in ours}
        if sorted(found.values()) == sorted(theirs):
            return found
    return {}


def _common_prefixes(state: State) -> list[str]:
    """The prefixes that all names share and that end with a dot, from the empty one to the longest."""
    prefixes = [""]
    for parts in zip(*(key.split(".")[:-1] for key in state), strict=False):
        if len(set(parts)) > 1:
            break
        prefixes.append(f"{prefixes[-1]}{parts[0]}.")
    return prefixes


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _layers(state: State) -> Layers:
    """The layers in order of first appearance."""
    layers: Layers = {}
    for key, value in state.items():
        layers.setdefault(_layer(key), {})[key.rpartition(".")[2]] = value
    return layers


def _by_shape(path: Path, ours: Layers, theirs: Layers) -> dict[str, str]:
    """{our name: their name} of each tensor, by the kinds and shapes of the layers' tensors."""
    if len(ours) != len(theirs):
        raise UserError(f"checkpoint {path} has {len(theirs)} layers with weights, the model {len(ours)}; {GIVE_MODEL}")
    our_names, their_names = _names_by_shapes(ours), _names_by_shapes(theirs)
    for shapes, names in their_names.items():
        if len(names) != len(our_names.get(shapes, [])):
            raise UserError(
                f"checkpoint {path} does not fit the model: the model has {len(our_names.get(shapes, []))} layers of "
                f"{_show(shapes)}, the file {len(names)} ({names[0]}); {GIVE_MODEL}"
            )
    same_order = list(map(_shapes, ours.values())) == list(map(_shapes, theirs.values()))
    for shapes, names in their_names.items():
        numbered = same_order and _are_numbered(names) and _are_numbered(our_names[shapes])
        if len(names) > 1 and (path.suffix == ".safetensors" or not numbered):  # safetensors have no order
            raise UserError(
                f"checkpoint {path} has layers of equal shapes ({', '.join(names[:2])}), and their names do not tell "
                f"which layer of the model each is; rename its keys to the model's ({', '.join(list(ours)[:2])}, ...)"
            )
    pairs = [pair for shapes in our_names for pair in zip(our_names[shapes], their_names[shapes], strict=True)]
    prefix = {ours_: f"{ours_}." if ours_ else "" for ours_, _ in pairs}
    other = {theirs_: f"{theirs_}." if theirs_ else "" for _, theirs_ in pairs}
    return {f"{prefix[a]}{kind}": f"{other[b]}{kind}" for a, b in pairs for kind in ours[a]}


def _names_by_shapes(layers: Layers) -> dict[Shapes, list[str]]:
    names: dict[Shapes, list[str]] = {}
    for name, layer in layers.items():
        names.setdefault(_shapes(layer), []).append(name)
    return names


def _shapes(layer: dict[str, Tensor]) -> Shapes:
    return tuple(sorted((kind, tuple(value.shape)) for kind, value in layer.items()))


def _show(shapes: Shapes) -> str:
    return ", ".join(f"{kind} {shape}" for kind, shape in shapes)


def _are_numbered(names: list[str]) -> bool:
    """Whether names differ in their numbers only, which increase: `layer_0`, `layer_2`; not `fc3`, `fc2`."""
    numbers = [tuple(map(int, re.findall(r"\d+", name))) for name in names]
    return len({re.sub(r"\d+", "#", name) for name in names}) == 1 and all(a < b for a, b in pairwise(numbers))
