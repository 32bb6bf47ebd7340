"""Finds the source files that determine a result: what the given files import, with a hash of each. Imports no torch.

A hash covers the syntax tree without docstrings and comments, so that editing prose changes nothing. Imports are
followed into our own packages and the user's files, and so are names of attacks and certifiers in our modules that look
them up in the registry. Data files that a user's file reads when it is imported count too; for an installed package,
only the version counts.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from bench.core import registry
from bench.core.files import sha256
from bench.core.package_origins import INSTALLED, PACKAGES, ROOT
from bench.core.spec_text import split_steps

LOOK_UPS = {"make_attacks", "make_certifiers"}  # functions that take names of the registry


def closure(roots: Iterable[Path], alone: Iterable[Path] = ()) -> dict[str, str]:
    """Hashes of `roots` and all that they import: path of a file or name of a package -> hash or version, sorted.

    alone: files whose imports are not followed.
    """
    found = {path: _our_source(path).hash for path in alone}
    versions: dict[str, str] = {}
    waiting = [path.resolve() for path in roots]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        source = _our_source(path) if _is_ours(path) else Source(path)
        found[path] = source.hash
        found |= {data: sha256(data)[:12] for data in registry.opened_at_import.get(path, ())}
        waiting += source.files
        versions |= source.versions
    return dict(sorted(_by_name(found).items())) | dict(sorted(versions.items()))


def combined(hashes: dict[str, str]) -> str:
    """One hash, of 12 digits, for the result of `closure`."""
    text = "\n".join(f"{name} {value}" for name, value in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Source:
    """One Python file: the hash of its code, the files that it imports, and the versions of imported packages."""

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_bytes())
        tokens: list[str] = []
        _write_tokens(tree, tokens)
        self.hash = hashlib.sha256("".join(tokens).encode()).hexdigest()[:12]
        self.files: list[Path] = []
        self.versions: dict[str, str] = {}
        nodes = list(_run_nodes(tree))
        for module in dict.fromkeys(_imported(nodes, _module_name(path))):
            origin = _origin(module)
            if origin is None:
                continue
            if _is_followed(origin, path):
                self.files.append(origin)
            else:
                self.versions |= package_version(module.partition(".")[0])
        if _is_ours(path) and _looks_up_names(nodes):
            self.files += _registered(nodes)


_our_source = cache(Source)  # our files do not change within a process, and neither does what runs


def _write_tokens(node: ast.AST, tokens: list[str]) -> None:
    """Append the syntax tree as text. Empty fields are left out, because newer versions of Python have more of them."""
    tokens.append(f"({type(node).__name__}")
    for name, value in ast.iter_fields(node):
        if value is None or value == [] or name in ("type_comment", "kind"):
            continue
        children = value if isinstance(value, list) else [value]
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            children = children[1:] if ast.get_docstring(node, clean=False) is not None else children
        tokens.append(f" {name}=")
        for child in children:
            if isinstance(child, ast.AST):
                _write_tokens(child, tokens)
            else:
                tokens.append(f"{child!r},")
    tokens.append(")")


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under `if TYPE_CHECKING`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=other):
                waiting += other
            case _:
                waiting += ast.iter_child_nodes(node)


def _imported(nodes: list[ast.AST], module: str) -> Iterator[str]:
    """The names of all modules that may be imported, those inside functions included."""
    for node in nodes:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield from _with_parents(alias.name)
            case ast.ImportFrom(module=name, names=names, level=level):
                package = ".".join(module.split(".")[:-level]) if level else ""
                parent = ".".join(part for part in (package, name) if part)
                yield from _with_parents(parent)
                for alias in names:
                    yield f"{parent}.{alias.name}"  # a module or an attribute; `_origin` knows


def _with_parents(module: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`: importing a module runs its packages too."""
    parts = module.split(".")
    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))


def _origin(module: str) -> Path | None:
    """The Python file of a module, found without importing anything; None if there is none."""
    top, *rest = module.split(".")
    if top in PACKAGES:
        return _file_in(ROOT, [top, *rest])
    if top in sys.stdlib_module_names:
        return None
    if (loaded := sys.modules.get(module)) is not None:
        return _python_file(getattr(loaded, "__file__", None))
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec
        return None
    if spec is None or not rest:
        return None if spec is None else _python_file(spec.origin)
    places = map(Path, spec.submodule_search_locations or ())
    return next((file for place in places if (file := _file_in(place, rest)) is not None), None)


def _file_in(folder: Path, parts: list[str]) -> Path | None:
    path = folder.joinpath(*parts)
    return _python_file(path.with_name(f"{path.name}.py")) or _python_file(path / "__init__.py")


def _python_file(path: str | Path | None) -> Path | None:
    return Path(path).resolve() if path is not None and str(path).endswith(".py") and Path(path).is_file() else None


def _is_followed(origin: Path, importer: Path) -> bool:
    """Whether the file is ours, the user's, or of the same installed package as the file that imports it."""
    if _is_ours(origin) or not _is_installed(origin):
        return True
    return _is_installed(importer) and not _is_ours(importer) and _top(origin) == _top(importer)


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES


def _is_installed(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in INSTALLED)


def _top(path: Path) -> Path:
    """The folder, or file, in site-packages that holds an installed file."""
    folder = next(folder for folder in INSTALLED if path.is_relative_to(folder))
    return folder / path.relative_to(folder).parts[0]


@cache
def package_version(package: str) -> dict[str, str]:
    """The installed distribution of a top-level package and its version; empty for one without metadata."""
    try:
        return {package: version(package)}
    except PackageNotFoundError:  # named otherwise, as scikit-learn is; this reads every installed package
        return {name: version(name) for name in packages_distributions().get(package, [])}


def _module_name(path: Path) -> str:
    """The dotted name, for relative imports: of our files below ROOT, of others by how they were imported."""
    if _is_ours(path):
        return ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == str(path):
            return f"{name}.__init__" if path.name == "__init__.py" else name
    return path.stem


def _looks_up_names(nodes: list[ast.AST]) -> bool:
    """Whether the module gets attacks or certifiers by name."""
    return any(
        (isinstance(node, ast.Name) and node.id in LOOK_UPS)
        or (isinstance(node, ast.Attribute) and node.attr == "get" and _is_registry(node.value))
        for node in nodes
    )


def _is_registry(node: ast.expr) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="registry"), attr="attack" | "certifier"):
            return True
    return False


def _registered(nodes: list[ast.AST]) -> Iterator[Path]:
    """The files of the attacks and certifiers that the module names in string constants."""
    for text in {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}:
        yield from files_of_spec(text, registry.attack, registry.certifier)


def files_of_spec(text: str, *kinds: registry.Registry) -> Iterator[Path]:
    """The files of the registered entries that a spec, or another text, may name; the file of FILE.py:FUNCTION."""
    head = text.partition(":")[0]
    if head.endswith(".py"):
        yield Path(head)
    for kind in kinds:
        for name in {head, split_steps(head)[0], head.partition(".")[0]}:
            entry = kind.entries().get(name)
            origin = None if entry is None else _origin(entry.source.partition(":")[0])
            if origin is not None:
                yield origin


def _by_name(hashes: dict[Path, str]) -> dict[str, str]:
    """Our files by their path in the repository, those of the user by their name, numbered where names repeat."""
    named: dict[str, str] = {}
    for path, value in sorted(hashes.items()):
        name = path.relative_to(ROOT).as_posix() if _is_ours(path) else path.name
        copies = sum(1 for other in named if other == name or other.startswith(f"{name} ("))
        named[f"{name} ({copies + 1})" if copies else name] = value
    return named
