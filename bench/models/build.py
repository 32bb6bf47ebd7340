"""Models by spec."""

from torch import nn

from bench.core import registry
from bench.core.errors import UserError
from bench.core.specs import parse_spec


def build_model(text: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The architecture of a spec, for images of `shape` (C,H,W); UserError if it cannot be built."""
    model = parse_spec(text, registry.model).build(shape, classes)
    if not isinstance(model, nn.Module):
        raise UserError(f"model '{text}' returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model
