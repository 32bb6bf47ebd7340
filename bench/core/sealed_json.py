"""JSON files that hold a digest of themselves, so that damage is detected. Imports no torch.

The digest is the SHA-256 of the other values in canonical form. It protects against damage, not against forgery.
"""

import hashlib
import json
from typing import Any, TypeVar

import msgspec

from bench.core.errors import UserError

DIGEST = "digest"
T = TypeVar("T")


def encode(value: msgspec.Struct) -> bytes:
    """Indented JSON of the struct, which ends with its digest."""
    values = msgspec.to_builtins(value)
    return f"{json.dumps(values | {DIGEST: digest(values)}, indent=1, allow_nan=False)}\n".encode()


def decode(text: bytes, kind: type[T], *, required: bool = True) -> T:
    """Decode a struct. UserError if its digest is wrong, or required and missing; msgspec's errors if it does not fit.

    required: False for files that earlier versions wrote without one.
    """
    return msgspec.convert(values_of(text, required=required), kind)


def values_of(text: bytes, *, required: bool = True) -> Any:
    """Return the values without their digest. Raises the errors of `decode`."""
    values = msgspec.json.decode(text)
    if isinstance(values, dict):
        claimed = values.pop(DIGEST, None)
        if (required or claimed is not None) and claimed != digest(values):
            raise UserError("its digest is not that of its content, so it was changed or damaged")
    return values


def digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
