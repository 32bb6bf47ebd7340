"""Records of earlier schemas, brought to today's. A step for each schema that there was; none is ever changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.core.errors import UserError

SCHEMA = 2


def _to_2(raw: dict[str, Any]) -> None:
    """Schema 2 counts the model's parameters, which earlier records do not say."""
    raw["parameters"] = None


STEPS: dict[int, Callable[[dict[str, Any]], None]] = {1: _to_2}


def migrate(raw: dict[str, Any]) -> dict[str, Any]:
    """A record as it was read, in today's schema; UserError for a schema that this version does not know."""
    while (schema := raw.get("schema")) != SCHEMA:
        if schema not in STEPS:
            raise UserError(f"schema {schema!a} is none of 1 to {SCHEMA}; a newer robust-bracket may read it")
        STEPS[schema](raw)
        raw["schema"] = schema + 1
    return raw
