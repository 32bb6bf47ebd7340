"""The architectures of timm (R. Wightman), as timm.resnet18."""

from collections.abc import Callable

from torch import nn

from bench.core import registry
from bench.core.errors import UserError
from bench.core.extras import import_extra
from bench.core.registry import did_you_mean
from bench.models.building_blocks import Shape


@registry.model_library("timm")
def from_timm(name: str) -> Callable[[Shape, int], nn.Module]:
    """Architectures of timm (R. Wightman) by name, with random weights, as timm.resnet18."""
    timm = import_extra("timm", "timm", f"timm.{name}")
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise UserError(f"timm has no architecture '{name}': {near}timm.list_models() has all")

    def build(shape: Shape, classes: int) -> nn.Module:
        channels, *size = shape
        # transformers are built for one image size; other networks do not accept this argument
        fixed = {"img_size": tuple(size)} if timm.get_pretrained_cfg(name).fixed_input_size else {}
        model: nn.Module = timm.create_model(name, pretrained=False, in_chans=channels, num_classes=classes, **fixed)
        return model

    return build
