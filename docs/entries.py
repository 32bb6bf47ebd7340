"""Pages of the site that are made when it is built (a hook of MkDocs): API, entries, studies, the files of the root.

A page lists what is registered, each by its docstring, so it cannot lack an entry.
"""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from bench.core import registry

ROOT = Path(__file__).parents[1]
KINDS = {
    "defenses": registry.defense,
    "attacks": registry.attack,
    "certifiers": registry.certifier,
    "models": registry.model,
    "datasets": registry.dataset,
    "corruptions": registry.corruption,
}
FILES = {"guide.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}
STUDIES = """# Studies

Experiments of papers that are neither a defense nor an attack: `bench study NAME`. `--size small` takes a minute or
two on one core, `--size paper` has the sizes of the paper, and `--figure FILE` draws. The output ends with each claim
of the paper, what was measured, and whether it holds. `bench study NAME --help` has the options.
"""
API = """# Python

What users and plugins import, from `bench.api`.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of KINDS, of the studies, of bench.api and of FILES, whose links begin at the root."""
    for name, source in FILES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    for kind, entries in KINDS.items():
        title = f"# {kind.capitalize()}\n\n`bench list {kind} NAME` has the options of one.\n"
        files.append(File.generated(config, f"reference/{kind}.md", content=page(title, entries)))
    files.append(File.generated(config, "studies/index.md", content=page(STUDIES, registry.study, pictures())))
    files.append(File.generated(config, "reference/api.md", content=api_page()))
    return files


def page(head: str, entries: registry.Registry, with_pictures: frozenset[str] = frozenset()) -> str:
    """A page with the docstring of each entry; those with a picture NAME.png beside the page come first."""
    parts = [head]
    for name, where in sorted(places(entries).items(), key=lambda item: (item[0] not in with_pictures, item[0])):
        picture = f"![What `bench study {name}` draws]({name}.png)\n\n" if name in with_pictures else ""
        parts.append(f"## {name}\n\n{picture}::: {where}\n")
    return "\n".join(parts)


def places(entries: registry.Registry) -> dict[str, str]:
    """Name -> MODULE.ATTRIBUTE of each built-in entry."""
    return {
        name: f"{entry.source}.{attribute}"
        for name, entry in entries.entries().items()
        for attribute in [getattr(entry.load, "args", ("", ""))[1]]
    }


def pictures() -> frozenset[str]:
    return frozenset(path.stem for path in (ROOT / "docs" / "studies").glob("*.png"))


def api_page() -> str:
    """Each name of bench.api.__all__ by the docstring where it is defined; modules are left out."""
    tree = ast.parse((ROOT / "bench" / "api.py").read_text(encoding="utf-8"))
    origins = {
        alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    shown = [name for name in names if name != "registry"]
    return "\n".join([API, *(f"## {name}\n\n::: {origins.get(name, f'bench.api.{name}')}\n" for name in shown)])
