"""Registries of defenses, attacks, certifiers, data sets, corruptions, models, studies and engines by name.

An entry is a class or a function decorated by `@registry.KIND("name")`; the first line of its docstring is its summary.
Built-ins are found by parsing the files of their package, without importing them: `bench list` never loads torch.
Plugins register in the same way, from a file (`--plugin FILE`) or an entry point of the group `robust_bracket.KINDs`.
"""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

from bench.core.errors import UserError
from bench.core.opened_files import record_opened_files

T = TypeVar("T")
PLURAL = {"study": "studies", "library": "libraries", "model_library": "model-libraries"}  # all others take an s


@dataclass(frozen=True)
class Entry:
    """Where a name comes from, and how to load its class or function."""

    name: str
    summary: str
    source: str  # a module's name, a plugin's file or a distribution
    load: Callable[[], Any]


class Registry:
    """The entries of one kind. Calling it with a name gives the decorator that registers under this name."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._built_in: dict[str, Entry] | None = None
        self._plugins: dict[str, Entry] = {}

    def __call__(self, name: str) -> Callable[[T], T]:
        def register(thing: T) -> T:
            module = str(thing.__module__)
            if not module.startswith(f"{self.package}."):  # built-ins are known from their files
                entry = Entry(name, _first_line(thing.__doc__), module, lambda: thing)
                self._check_new(entry, self._read_package() | self._plugins)
                self._plugins[name] = entry
            return thing

        return register

    def entries(self) -> dict[str, Entry]:
        """All entries by name, in alphabetical order."""
        entries = self._read_package() | self._plugins
        for point in installed_plugins(f"robust_bracket.{PLURAL.get(self.kind, self.kind + 's')}"):
            entry = Entry(point.name, "", point.value, partial(_load_entry_point, self.kind, point))
            if point.name not in entries or entries[point.name].source != point.value:
                self._check_new(entry, entries)
            entries[point.name] = entry
        return dict(sorted(entries.items()))

    def names(self) -> list[str]:
        return list(self.entries())

    def __contains__(self, name: str) -> bool:
        return name in self.entries()

    def get(self, name: str) -> Any:
        """The class or function called `name`; UserError with the most similar names if there is none."""
        entries = self.entries()
        if name not in entries:
            raise unknown(self.kind, name, entries)
        return entries[name].load()

    def _check_new(self, entry: Entry, known: Mapping[str, Entry]) -> None:
        if entry.name in known:
            sources = f"{known[entry.name].source} and by {entry.source}"
            raise UserError(f"{self.kind} '{entry.name}' is registered twice, by {sources}; rename one of them")

    def _read_package(self) -> dict[str, Entry]:
        if self._built_in is None:
            self._built_in = {}
            spec = importlib.util.find_spec(self.package)
            folders = [] if spec is None else list(spec.submodule_search_locations or [])
            files = [(path, Path(folder)) for folder in folders for path in Path(folder).rglob("*.py")]
            for path, folder in sorted(files):
                module = ".".join((self.package, *path.relative_to(folder).with_suffix("").parts))
                for name, attribute, summary in self._declared(path):
                    entry = Entry(name, summary, module, partial(_load_built_in, module, attribute))
                    self._check_new(entry, self._built_in)
                    self._built_in[name] = entry
        return self._built_in

    def _declared(self, path: Path) -> Iterator[tuple[str, str, str]]:
        """(name, attribute, summary) of each definition decorated by `@registry.KIND("name")`."""
        source = path.read_text(encoding="utf-8")
        if f"registry.{self.kind}(" not in source:
            return
        for node in ast.parse(source).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                match decorator:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name(id="registry"), attr=self.kind),
                        args=[ast.Constant(value=str(name)), *_],
                    ):
                        yield name, node.name, _first_line(ast.get_docstring(node))


opened_at_import: dict[Path, set[Path]] = {}  # user's file -> the data files that it read when it was imported


@cache
def installed_plugins(group: str) -> EntryPoints:
    """The entry points of a group. Reading them takes milliseconds, so they are read once."""
    return entry_points(group=group)


def unknown(kind: str, name: str, names: Iterable[str]) -> UserError:
    """The error for an unknown name, with the most similar known ones."""
    return UserError(
        f"unknown {kind} '{name}': {did_you_mean(name, names)}`bench list {PLURAL.get(kind, kind + 's')}` shows all"
    )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question with the most similar known names; empty if none is similar."""
    near = difflib.get_close_matches(name.rstrip("-0123456789") or name, list(names), n=3)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def load_plugins(paths: Iterable[Path]) -> list[str]:
    """Import files that register something, and return their SHA-256 hashes; UserError if that fails."""
    return [load_plugin(path) for path in paths]


def load_plugin(path: Path) -> str:
    """Import a file that registers something, and return its SHA-256; UserError if that fails."""
    module = import_file(path, what="plugin").__name__
    if not any(entry.source == module for kind in KINDS for entry in kind._plugins.values()):
        raise UserError(f"plugin {path} registers nothing; decorate a class of it, as with @registry.defense(NAME)")
    return hashlib.sha256(path.read_bytes()).hexdigest()


_named: ContextVar[frozenset[Path] | None] = ContextVar("the files that may be imported", default=None)  # None: all


@contextmanager
def only_named_code(paths: Iterable[Path]) -> Iterator[None]:
    """Inside the block, import_file refuses files other than `paths`, which the user has named."""
    token = _named.set(frozenset(path.resolve() for path in paths))
    try:
        yield
    finally:
        _named.reset(token)


def import_file(path: Path, *, what: str) -> Any:
    """Import a Python file, once per content; UserError if that fails."""
    named = _named.get()
    if named is not None and path.resolve() not in named:
        raise UserError(f"{what} {path} is code that the checkpoint names; read it, then give --trust-code {path}")
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist; give the path of a Python file")
    name = f"bench_plugin_{path.stem}_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{what} {path} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    opened_at_import[path.resolve()] = opened = set[Path]()
    try:
        with record_opened_files(opened):
            spec.loader.exec_module(module)
    except UserError:
        _forget(name)
        raise
    except (Exception, SystemExit) as error:
        _forget(name)
        hint = f"`python {path}` shows where"
        if isinstance(error, ModuleNotFoundError) and (path.parent / f"{error.name}.py").is_file():
            hint = f"for the files beside it, set PYTHONPATH={path.parent}"
        raise UserError(f"{what} {path} fails to import ({one_line(error)}); {hint}") from error
    return module


def _forget(module: str) -> None:
    """Remove a module that failed to import, and what it had registered until then."""
    del sys.modules[module]
    for kind in KINDS:
        kind._plugins = {name: entry for name, entry in kind._plugins.items() if entry.source != module}


def one_line(error: BaseException) -> str:
    """An exception as one line: its class and the first line of its message."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {shorten(lines[0], 120)}" if lines else type(error).__name__


def _load_built_in(module: str, attribute: str) -> Any:
    return getattr(importlib.import_module(module), attribute)


def _load_entry_point(kind: str, point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise UserError(
            f"{kind} '{point.name}' of the entry point {point.value} fails to load ({one_line(error)}); "
            "reinstall or remove its package"
        ) from error


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]


attack = Registry("attack", "attacks")
certifier = Registry("certifier", "certifiers")
defense = Registry("defense", "defenses")
dataset = Registry("dataset", "bench.datasets")
corruption = Registry("corruption", "bench.datasets")
model = Registry("model", "bench.models")
study = Registry("study", "bench.studies")
library = Registry("library", "attacks")  # functions: name of another library's attack -> its adapter
engine = Registry("engine", "bench.runs.engines")
model_library = Registry("model_library", "bench.models")  # functions: name of another library's model -> its builder
KINDS = (attack, certifier, defense, dataset, corruption, model, study, library, model_library, engine)
