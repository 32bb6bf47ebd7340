"""Packed networks: masks as entropy codes, signs as bits, everything else unchanged. Loading is exact."""

from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.core.files import write_atomically
from bench.training import mask_coding, packed_format
from bench.training.architecture import Layer, Sign, latent, linear_layers, parametrizations_of
from bench.training.checkpoints import BuildSpec
from bench.training.packed_format import Weights
from bench.training.pruning import SignedMask, WeightMask
from bench.training.subnet import TopScoreMask


def save_packed(path: Path, model: nn.Module, spec: BuildSpec) -> None:
    """Write the network that the model computes in eval mode. Scores and the values of pruned weights are left out."""
    write_atomically(path, packed_bytes(model, spec))


def packed_bytes(model: nn.Module, spec: BuildSpec) -> bytes:
    """The content of a packed file: the build spec, the coded weights of the layers, and all other tensors."""
    rest = b"".join(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in other_tensors(model))
    return packed_format.write(msgspec.json.encode(spec, order="deterministic"), weights_of(model), rest)


def weights_of(model: nn.Module) -> list[Weights]:
    """The weights that linear and convolutional layers use, flat."""
    with torch.no_grad():
        return [layer.weight.detach().cpu().numpy().astype(np.float32).ravel() for layer in linear_layers(model)]


def other_tensors(model: nn.Module) -> list[Tensor]:
    """The state of the model without the weights of linear and convolutional layers, in the order of its keys."""
    names = {module: name for name, module in model.named_modules()}
    layers = [f"{names[layer]}." if names[layer] else "" for layer in linear_layers(model)]
    own = tuple(f"{layer}{part}" for layer in layers for part in ("weight", "parametrizations.weight."))
    return [tensor for key, tensor in model.state_dict().items() if not key.startswith(own)]


@torch.no_grad()
def load_packed(model: nn.Module, path: Path) -> None:
    """Load a packed network into the model of its build spec; UserError if it does not fit it."""
    header, weights, rest = packed_format.read(path)
    layers, others = linear_layers(model), other_tensors(model)
    sizes = [layer.weight.numel() for layer in layers]
    if [layer.size for layer in header.layers] != sizes or len(rest) != sum(t.nbytes for t in others):
        raise UserError(
            f"checkpoint {path} holds a different network from the one that its header describes; it was changed"
        )
    for layer, weight in zip(layers, weights, strict=True):
        wanted = torch.from_numpy(weight).reshape(layer.weight.shape)
        restore(layer, wanted)
        if not torch.equal(layer.weight.cpu(), wanted):
            raise UserError(f"checkpoint {path} has weights that a layer of its model cannot have; it was changed")
    place = 0
    for tensor in others:
        values = np.frombuffer(rest[place : place + tensor.nbytes], tensor.cpu().numpy().dtype)
        tensor.copy_(torch.from_numpy(values.copy()).reshape(tensor.shape))
        place += tensor.nbytes


def restore(layer: Layer, weight: Tensor) -> None:
    """Set the layer's parts so that its effective weight is this one; pruned weights get an arbitrary value."""
    parts, chosen = parametrizations_of(layer), weight != 0
    fills = any(isinstance(part, Sign | TopScoreMask) for part in parts)  # pruned weights have a value too
    filled = weight.masked_fill(~chosen, 1.0) if fills else weight
    last = parts[-1] if parts else None
    if isinstance(last, TopScoreMask):
        last.scores.copy_(chosen)
    elif isinstance(last, WeightMask):
        last.mask.copy_(chosen)
    if isinstance(last, SignedMask):
        last.sign.copy_(torch.where(weight < 0, -1.0, 1.0))
        filled = filled.abs()
    latent(layer).copy_(filled)


class PackedSize(msgspec.Struct, frozen=True):
    """The size of a packed network: bytes of the file and of its other tensors, and the entropy of masks and signs.

    bound: log2 of the number of masks with as many kept weights in each layer, plus, per kept weight, one bit in layers
    with two values and 32 bits in layers with more.
    """

    file: int
    rest: int
    bound: float

    @property
    def over_bound(self) -> float:
        """The size of the file without its other tensors, as a multiple of the bound."""
        return 8 * (self.file - self.rest) / self.bound


def packed_size(model: nn.Module, spec: BuildSpec) -> PackedSize:
    """The size of the network's packed file, without writing it, and the entropy of its masks and values."""
    bound = 0.0
    for weight in weights_of(model):
        kept, values = int((weight != 0).sum()), len(np.unique(weight[weight != 0]))
        bound += mask_coding.entropy_bits(weight.size, kept) + kept * (32 if values > 2 else max(values - 1, 0))
    rest = sum(tensor.nbytes for tensor in other_tensors(model))
    return PackedSize(len(packed_bytes(model, spec)), rest, bound)
