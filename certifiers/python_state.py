"""The Python state of a model: values that its forward can read and change."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Collection
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None))
DEPTH = 8
LARGEST = 1000  # items of a container that are looked at
# the counters of this project's hooks do not change what a model computes
LIBRARIES = {"bench", "torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
INTERNAL = set(vars(nn.Module())) - {"training"}


@dataclass(frozen=True)
class PythonState:
    """`values`: equal for two states if no plain value has changed. tensors: all tensors of the state, by id."""

    values: list[Any]
    tensors: dict[int, Tensor]

    def changed_by(self, after: PythonState, used: Collection[int]) -> bool:
        """Whether a plain value has changed, or a tensor that was used (by id) has been replaced."""
        return self.values != after.values or any(key in self.tensors and key not in after.tensors for key in used)


def python_state(model: nn.Module) -> PythonState:
    """Collect the modules' attributes and classes, and the variables that their functions and hooks refer to."""
    look = _Look()
    values: list[Any] = []
    for module in model.modules():
        own = {key: value for key, value in vars(module).items() if key not in INTERNAL}
        values.append(look.at(own, DEPTH))
        values += [look.at(kind, DEPTH) for kind in type(module).__mro__ if not _of_library(kind)]
        values += [
            look.at(hook, DEPTH) for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        ]
        look.tensors |= {
            id(each): each for each in (*module._parameters.values(), *module._buffers.values()) if each is not None
        }
    return PythonState(values, look.tensors)


class _Look:
    """Copies plain values out of containers, objects and functions, visiting each of these once."""

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        self._seen: dict[int, Any] = {}  # kept, so that no id is reused

    def at(self, value: Any, depth: int) -> Any:
        name = type(value).__name__
        if isinstance(value, PLAIN):
            return value if value == value else "nan"
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value
            return "tensor"
        if depth == 0 or isinstance(value, nn.Module) or id(value) in self._seen:
            return name
        self._seen[id(value)] = value
        if isinstance(value, MethodType):
            return [name, self.at(value.__func__, depth), self.at(value.__self__, depth - 1)]
        if isinstance(value, FunctionType):
            return name if _of_library(value) else [name, self._around(value, depth - 1)]
        if isinstance(value, (list, tuple, set, frozenset)):
            return [name, len(value), *(self.at(each, depth - 1) for each in list(value)[:LARGEST])]
        if isinstance(value, dict):
            return [name, *((str(key), self.at(each, depth - 1)) for key, each in list(value.items())[:LARGEST])]
        if isinstance(value, (type, ModuleType)):
            return name if _of_library(value) else [name, self.at(dict(vars(value)), depth - 1)]
        if hasattr(value, "__dict__") and not _of_library(type(value)):
            return [name, self.at(vars(value), depth - 1)]
        try:  # an iterator, a generator of random numbers, an array
            return pickle.dumps(value)
        except Exception:  # whatever pickling it raises
            return repr(value)[:LARGEST]

    def _around(self, function: FunctionType, depth: int) -> list[Any]:
        """The closure and the defaults of a function, and the global variables that it names."""
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(self.at(cell.cell_contents, depth))
            except ValueError:  # an empty cell
                cells.append(None)
        names = sorted(_names(function.__code__) & function.__globals__.keys())
        kept = (function.__defaults__, function.__kwdefaults__, vars(function))
        return [
            cells,
            *(self.at(each, depth) for each in kept),
            *(self.at(function.__globals__[k], depth) for k in names),
        ]


def _of_library(thing: Any) -> bool:
    """Whether a class, function or module is torch's, numpy's or Python's."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", "")
    return str(name).partition(".")[0] in LIBRARIES


def _names(code: CodeType) -> set[str]:
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def random_state() -> tuple[Any, ...]:
    """The state of Python's shared random number generators."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest
