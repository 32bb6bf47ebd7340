"""Specs of models: an architecture with its options, and the normalisation that any architecture may have."""

from typing import Any

from bench.core import registry
from bench.core.specs import Spec, options_of, parse_spec

Channels = tuple[float, ...]
NORMALISATION: dict[str, tuple[Any, Any]] = {"mean": (Channels, ()), "std": (Channels, ())}


def parse_model(text: str) -> tuple[Spec, Channels, Channels]:
    """Parse `cnn:mean=0.1307:std=0.3081` into the spec, and mean and std of each channel (empty if not given).

    If the architecture itself has options of these names, it gets them, and both are empty.
    """
    spec = parse_spec(text, registry.model, NORMALISATION)
    own = options_of(spec.target)
    mean, std = (spec.options.pop(key, ()) if key not in own else () for key in NORMALISATION)
    return spec, mean, std
