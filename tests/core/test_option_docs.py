"""Options as users see them: every type, defaults as they are written in specs, and meanings from the source."""

from dataclasses import dataclass
from typing import Literal

import pytest

from bench.core import registry
from bench.core.option_docs import document_options, option_meanings
from bench.core.specs import Length, OfEps


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base. decay: of the step size, at each step."""

    steps: int = 10  # gradient steps
    decay: float = 0.5
    silent: int = 0


@dataclass(frozen=True, kw_only=True)
class Method(Base):
    """A method: colons in its summary are not options.

    first, second: share a meaning. mode: which mode it is in; see e.g. this.
    Still of mode. from: where images come from.
    """

    steps: int = 20  # steps of this one
    alpha: Length = OfEps(0.25)  # step size # of each step
    mode: Literal["a", "b"] = "a"
    first: float | None = None
    second: tuple[float, ...] = (0.5, 1)
    from_: str = ""
    noisy: int = 3


def function(shape, *, width: int = 16, depth: int = 2):
    """A model. width: channels of the first layer."""


def test_comments_come_before_docstrings_and_subclasses_before_bases():
    assert option_meanings(Method)["steps"] == "steps of this one"
    assert option_meanings(Base)["steps"] == "gradient steps"
    assert option_meanings(Method)["decay"] == "of the step size, at each step"


def test_each_option_has_name_type_default_and_meaning():
    options = {option.name: option[1:] for option in document_options(Method)}
    assert options == {
        "steps": ("a whole number", "20", "steps of this one"),
        "decay": ("a number", "0.5", "of the step size, at each step"),
        "silent": ("a whole number", "0", ""),
        "alpha": ("a number or a multiple of eps, as 0.1eps", "0.25eps", "step size # of each step"),
        "mode": ("a, b", "a", "which mode it is in; see e.g. this. Still of mode"),
        "first": ("a number or none", "none", "share a meaning"),
        "second": ("several of a number, joined by '+'", "0.5+1", "share a meaning"),
        "from": ("text", "", "where images come from"),
        "noisy": ("a whole number", "3", ""),
    }


def test_functions_are_documented_by_their_docstring():
    options = {option.name: option.meaning for option in document_options(function)}
    assert options == {"width": "channels of the first layer", "depth": ""}


def test_what_has_no_source_has_no_meanings():
    made = dataclass(frozen=True, kw_only=True)(type("Made", (), {"__annotations__": {"x": int}, "x": 1}))
    assert [option.name for option in document_options(made)] == ["x"]


@pytest.mark.parametrize("kind", ["defense", "attack", "certifier", "model", "dataset", "study"])
def test_every_option_of_every_entry_has_a_short_meaning(kind):
    entries = getattr(registry, kind)
    targets = {name: entries.get(name) for name in entries.names()}
    undocumented = {
        f"{name}: {option.name}"
        for name, target in targets.items()
        for option in document_options(getattr(target, "config_class", target))
        if not 0 < len(option.meaning) <= 120
    }
    assert not undocumented, "write a comment at the end of the line of each option"
