"""Imports of optional packages, which the extras of pyproject.toml install. Imports no torch."""

import importlib
from typing import Any

from bench.core.errors import UserError
from bench.core.registry import one_line


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """Import and return a module; UserError in one line if it fails: what is missing, and how to install it.

    extra: the name in `robust-bracket[EXTRA]`. purpose: what needs the module, the subject of the message.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # importing foreign code may raise anything
        install = f"pip install 'robust-bracket[{extra}]'"
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            raise UserError(f"{purpose} needs {error.name}, which is not installed; {install}") from error
        raise UserError(f"{purpose} needs {module}, which cannot be imported ({one_line(error)}); {install}") from error
