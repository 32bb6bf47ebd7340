"""What a model keeps in Python: numbers and texts that its forward can read and change."""

from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from bench.core import passes

PLAIN = (bool, int, float, complex, str, bytes, type(None))
DEPTH = 3


def python_state(model: nn.Module) -> list[Any]:
    """The plain values in the modules' attributes, and in the variables around their own functions and hooks."""
    state: list[Any] = []
    for module in model.modules():
        attributes = vars(module)
        state.append(_plain({key: value for key, value in attributes.items() if key[:1] != "_"}, DEPTH))
        state += [_around(function) for function in _functions(module)]
    return state


def _functions(module: nn.Module) -> Iterator[FunctionType]:
    """The user's functions that a call of the module runs."""
    candidates = [
        *(value for kind in type(module).__mro__ if not _of_torch(kind) for value in vars(kind).values()),
        *vars(module).values(), *module._forward_hooks.values(), *module._forward_pre_hooks.values(),
    ]  # fmt: skip
    for each in candidates:
        function = each.__func__ if isinstance(each, MethodType) else each
        counts = getattr(function, "__module__", None) == passes.__name__  # our counters of passes
        if isinstance(function, FunctionType) and not (counts or _of_torch(function)):
            yield function


def _of_torch(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] in ("torch", "builtins")


def _around(function: FunctionType) -> list[Any]:
    """The plain values in the closure, the defaults, and the global variables that a function names."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(_plain(cell.cell_contents, DEPTH))
        except ValueError:  # an empty cell
            cells.append(None)
    names = sorted(_names(function.__code__))
    around = {name: _plain(function.__globals__[name], DEPTH) for name in names if name in function.__globals__}
    return [cells, _plain(function.__defaults__, DEPTH), _plain(vars(function), DEPTH), around]


def _names(code: CodeType) -> set[str]:
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def _plain(value: Any, depth: int) -> Any:
    """A copy of the plain values in containers and objects, to some depth."""
    if isinstance(value, PLAIN):
        return value if value == value else "nan"
    if depth == 0:
        return type(value).__name__
    if isinstance(value, (list, tuple, set, frozenset)):
        return [type(value).__name__, len(value), *(_plain(each, depth - 1) for each in list(value)[:1000])]
    if isinstance(value, dict):
        return [[str(key), _plain(each, depth - 1)] for key, each in list(value.items())[:1000]]
    if isinstance(value, (nn.Module, type)) or _of_torch(type(value)) or not hasattr(value, "__dict__"):
        return repr(value)[:100] if type(value).__module__ in ("itertools", "collections") else type(value).__name__
    return [type(value).__name__, _plain(vars(value), depth - 1)]
