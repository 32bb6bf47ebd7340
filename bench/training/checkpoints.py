"""Files of tensors: the checkpoint of the training loop, finished weights, and safe reading of foreign weights."""

import hashlib
import io
import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bench.core import shares
from bench.core.bounded_text import check_json, check_safetensors_header
from bench.core.errors import UserError
from bench.core.files import write_atomically
from bench.core.record_files import LOG
from bench.core.registry import one_line
from bench.training import packed_format

CHECKPOINT = "checkpoint.pt"
SEAL = 32  # bytes at the end of a checkpoint
HEADER = "robust-bracket"  # the key of our spec in a safetensors header
State = dict[str, Tensor]


def save_checkpoint(folder: Path, state: dict[str, Any], identity: str) -> None:
    """Write the state of a training loop atomically, followed by a seal: a hash of it and of the training's identity.

    torch.load reads the file as it is, because a zip file may be followed by other bytes.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    write_atomically(folder / CHECKPOINT, data + _seal(data, identity))


def _seal(data: bytes, identity: str) -> bytes:
    return hashlib.sha256(identity.encode() + data).digest()


def save_log(folder: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Write one line of JSON for each epoch, atomically."""
    write_atomically(folder / LOG, "".join(json.dumps(line) + "\n" for line in log).encode())


def read_checkpoint(folder: Path, device: torch.device, keys: set[str], identity: str) -> dict[str, Any] | None:
    """Read the last saved state; None if there is none, or, with a warning, if its seal is broken.

    UserError if it was saved on another kind of device or number of processes. The first process reads it for all.
    """
    path, state = folder / CHECKPOINT, None
    content = shares.from_first(lambda: path.read_bytes() if path.exists() else None)
    if content is None:
        return None
    data, seal = content[:-SEAL], content[-SEAL:]
    if seal == _seal(data, identity):
        with suppress(UserError), _readable(path):
            state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    if not isinstance(state, dict) or set(state) != keys:
        print(f"warning: {path} is broken, or of another training, which starts again", file=sys.stderr)
        return None
    if state["device"] != device.type:
        raise UserError(
            f"{folder} was begun on {state['device']}, whose random numbers differ from those on {device.type}; use "
            f"--device {state['device']}, or another --out"
        )
    if state["processes"] != shares.count():
        raise UserError(
            f"{folder} was begun by {state['processes']} processes, whose sums are rounded differently from those "
            f"of {shares.count()}; use as many, or another --out"
        )
    return state


class BuildSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to build the model of some weights: the architecture, the shape (C,H,W) of its images, and the defense.

    training: the whole config of the defense; empty if there was none.
    """

    model: str
    shape: tuple[int, int, int]
    classes: int
    defense: str | None
    training: dict[str, Any]


def save_weights(path: Path, model: nn.Module, spec: BuildSpec) -> None:
    """Write the state dict as safetensors, with `spec` in the header. A shared tensor is written once per name."""
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    write_atomically(path, save(state, metadata={HEADER: msgspec.json.encode(spec, order="deterministic").decode()}))


def read_spec(path: Path) -> BuildSpec | None:
    """Read how to build the model of our own weights; None for other files. UserError if the file does not exist."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give a .safetensors, .pt or .ckpt file of weights")
    if path.suffix == packed_format.SUFFIX:
        with _readable(path):
            return msgspec.json.decode(packed_format.read(path)[0].spec, type=BuildSpec)
    if path.suffix != ".safetensors":
        return None
    with _readable(path):
        check_safetensors_header(path)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
        if text is None:
            return None
        check_json(text.encode(), "the build spec of its header")
        return msgspec.json.decode(text, type=BuildSpec)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn any error that reading `path` raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds {foreign[1]}, and only tensors and plain values are read" if foreign else one_line(error)
        raise UserError(
            f"checkpoint {path} cannot be read as plain tensors ({reason}); "
            "save a state dict with torch.save(model.state_dict(), FILE) or as safetensors"
        ) from error


def read_state(path: Path, key: str | None = None) -> State:
    """Read the tensors of a .safetensors file or a plain state dict (.pt, .pth, .ckpt). No code of a pickle is run.

    key: of the state dict in a file that holds several, such as the weights and their average.
    """
    with _readable(path):
        if path.suffix == ".safetensors":
            check_safetensors_header(path)
            check_no_key(path, key)
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        with warnings.catch_warnings(action="ignore"):  # about unusual pickles, which are read safely or refused
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    return _state_inside(path, loaded, key)


def check_no_key(path: Path, key: str | None) -> None:
    """UserError if a state dict is chosen by its key in a file that holds only one."""
    if key is not None:
        raise UserError(f"checkpoint {path} is one state dict; leave out --state-dict {key}")


def _state_inside(path: Path, loaded: Any, key: str | None) -> State:
    """The dict of tensors at `key`; or the only one: the whole content, or the value of a key such as `state_dict`."""
    if _is_state(loaded) and key is None:
        return dict(loaded)
    values = loaded if isinstance(loaded, Mapping) else {}
    inner = {str(name): value for name, value in values.items() if _is_state(value)}
    names = ", ".join(f"{name!a:.40}" for name in list(inner)[:8])
    if key is not None:
        if key not in inner:
            raise UserError(f"checkpoint {path} has no state dict '{key}'; it holds {names or 'none by name'}")
        return dict(inner[key])
    if len(inner) > 1:  # the choice is ambiguous
        raise UserError(f"checkpoint {path} holds {len(inner)} state dicts ({names}); choose one with --state-dict KEY")
    if not inner:
        raise UserError(f"checkpoint {path} holds 0 state dicts, not one; save model.state_dict() alone")
    return dict(next(iter(inner.values())))


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
