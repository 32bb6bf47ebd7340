"""Models by spec."""

from torch import nn

from bench.core.errors import UserError
from bench.core.model_specs import parse_model
from bench.models.building_blocks import NamedLayers, assemble


def build_model(text: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The architecture of a spec, for images of `shape` (C,H,W); UserError if it cannot be built."""
    spec, mean, std = parse_model(text)
    model = spec.build(shape, classes)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model '{text}' returned an object of class {type(model).__name__}; it must return a torch.nn.Module"
        )
    if not mean and not std:
        return model
    if len(mean) not in (0, shape[0]):
        raise UserError(f"model '{text}' has {len(mean)} means; images of shape {shape} have {shape[0]} channels")
    # the layers of a sequence keep their names, and so do the weights of a checkpoint
    layers: NamedLayers = [*model._modules.items()] if type(model) is nn.Sequential else [("model", model)]
    return assemble(layers, mean, std)
