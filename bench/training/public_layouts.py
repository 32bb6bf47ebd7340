"""The layers of residual networks in public code, by name, and the same layers of the networks in bench/models."""

import re
from collections.abc import Collection

ENDS = {"conv1": "stem", "bn1": "bn", "linear": "output", "fc": "output"}
# positions in a block that begins with batch norm: of one that keeps the shape, and of one that changes it
KEEPING = {"bn1": "branch.0", "conv1": "branch.2", "bn2": "branch.3", "conv2": "branch.5"}
CHANGING = {"bn1": "0", "conv1": "2.branch.0", "bn2": "2.branch.1", "conv2": "2.branch.3", "convShortcut": "2.shortcut"}


def our_layer_names(names: Collection[str]) -> dict[str, str]:
    """{our name: the public name} of each layer; empty unless all names belong to one layout.

    The layouts are those of ResNets in torchvision and in kuangliu/pytorch-cifar, and of wide ResNets in
    yaodongyu/TRADES and RobustBench. Pre-activation ResNets with the names of pytorch-cifar are left out: under the
    same names, some projects attach the shortcut before the first batch norm and others after it.
    """
    for layout in (_of_resnet, _of_wide_resnet):
        found = {layout(name, names): name for name in names}
        if None not in found and len(found) == len(names):
            return {ours: name for ours, name in found.items() if ours is not None}
    return {}


def _of_resnet(name: str, names: Collection[str]) -> str | None:
    """Blocks layerA.B of convK and bnK, K from 1, and of a shortcut of a convolution (0) and batch norm (1)."""
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)", name):
        stage, block, kind, number = match.groups()
        return f"stage{stage}.{block}.0.branch.{3 * int(number) - (3 if kind == 'conv' else 2)}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(?:shortcut|downsample)\.([01])", name):
        return "stage{}.{}.0.shortcut.{}".format(*match.groups())
    return ENDS.get(name)


def _of_wide_resnet(name: str, names: Collection[str]) -> str | None:
    """Blocks blockA.layer.B of bn1, conv1, bn2 and conv2, with a convShortcut if they change the shape."""
    if match := re.fullmatch(r"block(\d)\.layer\.(\d+)\.(\w+)", name):
        stage, block, part = match.groups()
        changes = f"block{stage}.layer.{block}.convShortcut" in names
        place = (CHANGING if changes else KEEPING).get(part)
        return None if place is None else f"stage{stage}.{block}.{place}"
    return ENDS.get(name)
