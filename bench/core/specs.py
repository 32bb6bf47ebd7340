"""Specs such as `pgd:steps=40:restarts=5`: a registered name and its options; and typed values from text."""

import dataclasses
import difflib
import inspect
import keyword
import math
import re
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bench.core.errors import UserError
from bench.core.registry import (
    Registry,
    attack,
    did_you_mean,
    import_file,
    library,
    model,
    model_library,
    one_line,
    unknown,
)
from bench.core.spec_text import join_spec, split_spec, split_steps


@dataclass(frozen=True)
class OfEps:
    """A length in units of eps: `alpha=0.1eps` is OfEps(0.1)."""

    factor: float

    def __str__(self) -> str:
        return f"{self.factor!r}eps"


TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
Length = float | OfEps  # the type of an option that is a step size or another distance
TYPE_NAMES: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", OfEps: "a multiple of eps, as 0.1eps",
    type(None): "none",
}  # fmt: skip


COUNTS = ("steps", "restarts", "samples", "queries", "targets", "nodes")  # options that are at least 1


def check_counts_and_lengths(options: Any) -> None:
    """UserError if a field that COUNTS names is below 1, or alpha is not positive."""
    for name, value in vars(options).items():
        if name in COUNTS and isinstance(value, int | float) and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
        if name == "alpha" and isinstance(value, int | float | OfEps) and in_units(value, 1.0) <= 0:
            raise UserError(f"alpha is {value}; it must be positive")


def in_units(length: Length, eps: Any) -> Any:
    """Convert a Length to a number, or to a tensor if eps is one."""
    return length.factor * eps if isinstance(length, OfEps) else length


# what a function of each kind takes, if it takes more than options
SIGNATURES = {"model": "(shape, classes, *, its options with defaults), where shape is (C, H, W), and returns a Module"}


@dataclass(frozen=True)
class Spec:
    """A registered class or function, and its options."""

    text: str  # canonical: the name, then the non-default options in the order of definition
    target: Callable[..., Any]
    options: dict[str, Any]
    kind: str = "entry"

    def build(self, *args: Any) -> Any:
        """Call make, and turn any exception into a UserError: it comes from a user's code, or from invalid options."""
        try:
            inspect.signature(self.target).bind(*args, **self.arguments)
        except TypeError as error:
            takes = SIGNATURES.get(self.kind, "its options by keyword, each with a default")
            raise UserError(f"{self.kind} '{self.text}' cannot be called ({error}); it takes {takes}") from error
        try:
            return self.make(*args)
        except UserError:
            raise
        except Exception as error:
            reason = one_line(error)
            raise UserError(f"{self.kind} '{self.text}' cannot be built ({reason}); check its options") from error

    def make(self, *args: Any) -> Any:
        return self.target(*args, **self.arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """The options by the names of their parameters: the option `from` is the parameter `from_`."""
        return {f"{name}_" if keyword.iskeyword(name) else name: value for name, value in self.options.items()}


def parse_spec(text: str, registry: Registry, common: Mapping[str, tuple[Any, Any]] | None = None) -> Spec:
    """`name[:option=value]...` -> Spec. `name-10` is short for `name:steps=10`; `FILE.py:FUNCTION` is the user's code.

    common: options that all entries have, name -> (type, default); an entry may have its own of the name.
    """
    name, texts = split_spec(text)
    path, colon, function = name.rpartition(".py:")
    implied: dict[str, Any] = {}
    if colon:
        target = _from_file(Path(f"{path}.py"), function, registry.kind)
    elif name.endswith(".py"):
        raise UserError(f"{registry.kind} '{text}': name the function in the file, as in {name}:build")
    else:
        target, implied = look_up(name, registry)
    own = options_of(target)
    hints = own | {key: option for key, option in (common or {}).items() if key not in own}
    options = dict(implied)
    for key, value in texts.items():
        if key not in hints:
            hint = did_you_mean(key, hints) or _of_positional(target, key)
            allowed = f"its options are {', '.join(hints)}" if hints else "it has no options"
            raise UserError(f"{registry.kind} '{name}' has no option '{key}': {hint}{allowed}")
        if key in implied:
            raise UserError(f"{registry.kind} '{text}': '{key}' is given twice; keep one")
        what = f"{registry.kind} '{name}': option '{key}'"
        try:
            options[key] = parse_value(value, hints[key][0], what)
        except UserError as error:
            raise UserError(f"{error}{_of_similar_option(key, value, hints)}") from error
    shown = {
        k: show_value(options[k]) for k in hints if k in options and k not in implied and options[k] != hints[k][1]
    }
    return Spec(join_spec(name, shown), target, options, registry.kind)


def options_of(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """The keyword-only parameters with a default of a class or function: name -> (type, default)."""
    typed = target if dataclasses.is_dataclass(target) or not inspect.isclass(target) else target.__init__
    hints = get_type_hints(typed)
    return {
        _option_name(p.name): (hints.get(p.name, str), p.default)
        for p in inspect.signature(target).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }


def _of_similar_option(key: str, value: str, hints: Mapping[str, tuple[Any, Any]]) -> str:
    """A hint if a value is wrong for `key`, but right for an option of a similar name: `step=40` for `steps=40`."""
    for other in difflib.get_close_matches(key, [each for each in hints if each != key], n=3):
        with suppress(UserError):
            parse_value(value, hints[other][0], other)
            return f"; did you mean '{other}'?"
    return ""


def _of_positional(target: Callable[..., Any], key: str) -> str:
    """A hint if `key` is a parameter but no option, because it can be given by position or has no default."""
    if key in inspect.signature(target).parameters:
        return f"options are keyword-only and have defaults, as in (..., *, {key}=...); "
    return ""


def _option_name(parameter: str) -> str:
    """`from` for the parameter `from_`, because `from` is a keyword of Python."""
    bare = parameter.removesuffix("_")
    return bare if keyword.iskeyword(bare) else parameter


def parse_value(value: Any, hint: Any, name: str) -> Any:
    """Text (or a TOML value) as the type `hint`: int, float (`8/255` too), bool, str, Length, tuples, None.

    UserError, with the name of the value first, if it is of another type.
    """
    if get_origin(hint) in (Union, types.UnionType):
        for member in sorted(get_args(hint), key=lambda h: h is str):  # any text is a str, so try that last
            with suppress(UserError):
                return parse_value(value, member, name)
    elif get_origin(hint) is Literal:
        for choice in get_args(hint):
            if value == choice or str(value) == str(choice):
                return choice
    elif get_origin(hint) is tuple:
        items = re.split(r",|(?<!\d[eE])\+", value) if isinstance(value, str) else value
        if isinstance(items, list | tuple):
            return tuple(parse_value(item, get_args(hint)[0], name) for item in items if item != "")
    elif hint is bool:
        if (text := str(value).lower()) in (*TRUE, *FALSE):
            return text in TRUE
    elif hint is int and not isinstance(value, bool):
        if isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value)):
            return int(value)
    elif hint is float and not isinstance(value, bool):
        if (number := _number(value)) is not None:
            return number
    elif hint is OfEps and isinstance(value, str):
        match = re.fullmatch(r"(.*?)\*?eps", value.strip())
        if match and (factor := _number(match[1] or "1")) is not None:
            return OfEps(factor)
    elif hint is str and isinstance(value, str):
        return value
    elif hint is type(None) and value in (None, "none", "None"):
        return None
    raise UserError(f"{name} takes {type_name(hint)}, not '{value}'")


def _number(value: Any) -> float | None:
    """A finite number from a number, or from text such as 0.1, 1e-3 or 8/255."""
    try:
        if isinstance(value, str):
            above, slash, below = value.partition("/")
            number = float(above) / float(below) if slash else float(above)
        else:
            number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def look_up(name: str, registry: Registry) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The entry of a name and the options that the name implies: `name-10` is `name:steps=10` unless it is an entry."""
    names = registry.entries()
    if name in names:
        return registry.get(name), {}
    short, steps = split_steps(name)
    if steps is not None and short in names:
        target = registry.get(short)
        if "steps" in options_of(target):
            return target, {"steps": steps}
    prefix, dot, rest = name.partition(".")
    of_libraries = {attack.kind: library, model.kind: model_library}.get(registry.kind)
    if dot and of_libraries is not None and prefix in of_libraries:
        return of_libraries.get(prefix)(rest), {}
    raise unknown(registry.kind, name, names)


def _from_file(path: Path, function: str, kind: str) -> Callable[..., Any]:
    target = getattr(import_file(path, what=f"{kind} file"), function, None)
    if not callable(target):
        raise UserError(f"{kind} file {path} has no function '{function}'")
    return target


def type_name(hint: Any) -> str:
    """Describe a type to users: `a whole number`, or the choices."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(type_name, get_args(hint)))
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"several of {type_name(get_args(hint)[0])}, joined by '+'"
    return TYPE_NAMES.get(hint, str(hint))


def show_value(value: Any) -> str:
    """Format a value as in a spec; the inverse of parse_value."""
    if isinstance(value, tuple):
        return "+".join(map(show_value, value))
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value).lower() if isinstance(value, bool) else str(value)
