"""network.json: the layers of a run's network, and which tensors of its weights file they use. Imports no torch.

The evaluation writes it (certifiers/network_description.py). The proof checker computes with it and the weights file
alone. Layers are functions of real numbers, and each is listed after its inputs. Layer 0 is the image.
"""

from pathlib import Path

import msgspec

from bench.core.errors import UserError
from bench.core.files import write_atomically

VERSION = 1


class _Tagged(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", kw_only=True):
    pass


class Stored(_Tagged, frozen=True, tag="stored"):
    """A tensor of the weights file."""

    name: str


class Numbers(_Tagged, frozen=True, tag="numbers"):
    """Constants that are no weights: a normalisation, the windows of a pooling."""

    shape: list[int]
    values: list[float]


class Masked(_Tagged, frozen=True, tag="masked"):
    """A tensor of the weights file with zeros where `mask` (a bit for each entry, in order) is 0: pruned weights."""

    name: str
    mask: bytes


class NormScale(_Tagged, frozen=True, tag="norm_scale"):
    """weight / sqrt(var + eps) of a batch norm; a weight that is None counts as 1."""

    var: str
    weight: str | None
    eps: float


class NormShift(_Tagged, frozen=True, tag="norm_shift"):
    """bias - mean weight / sqrt(var + eps) of a batch norm; a bias that is None counts as 0."""

    mean: str
    var: str
    weight: str | None
    bias: str | None
    eps: float


Array = Stored | Numbers | Masked | NormScale | NormShift


class _Layer(_Tagged, frozen=True):
    """inputs: the indices of its input layers. shape: of its output for one image, (F,) or (C,H,W)."""

    inputs: list[int]
    shape: list[int]


class Image(_Layer, frozen=True, tag="image"):
    pass


class Linear(_Layer, frozen=True, tag="linear"):
    """weight (F, F_in) z + bias (F,)."""

    weight: Array
    bias: Array | None


class Conv(_Layer, frozen=True, tag="conv"):
    """A convolution with zero padding: weight (C, C_in/groups, h, w), bias (C,)."""

    weight: Array
    bias: Array | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class TransposedConv(Conv, frozen=True, tag="transposed_conv"):
    """The transpose of the convolution with this weight (C_in, C/groups, h, w); bias (C,)."""


class Scale(_Layer, frozen=True, tag="scale"):
    """weight z + bias, with arrays that broadcast against the shape; those of a batch norm, (C,), count as (C,1,1)."""

    weight: Array
    bias: Array


class Reshape(_Layer, frozen=True, tag="reshape"):
    pass


class Rectifier(_Layer, frozen=True, tag="rectifier"):
    """z where z > 0, leak z elsewhere; the leak broadcasts against the shape."""

    leak: Array


class Add(_Layer, frozen=True, tag="add"):
    pass


class Concatenate(_Layer, frozen=True, tag="concatenate"):
    """The inputs one after the other along the channels (or units)."""


class Maximum(_Layer, frozen=True, tag="maximum"):
    """inputs r, b, a: r + b. r is relu(m (a - b)) with an m of 0 and 1, so this is max(a, b) where m is 1, else b."""


Layer = Image | Linear | Conv | TransposedConv | Scale | Reshape | Rectifier | Add | Concatenate | Maximum


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The output of the last layer is the logits."""

    version: int
    layers: list[Layer]


def write_description(path: Path, description: Description) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(description), indent=1) + b"\n")


def read_description(path: Path) -> Description:
    """Read a description; UserError if the file is not one."""
    try:
        description = msgspec.json.decode(path.read_bytes(), type=Description)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} does not describe a network: {' '.join(str(error).split())[:200]}") from error
    if description.version != VERSION:
        raise UserError(f"{path} has version {description.version}; this program reads version {VERSION}")
    return description
