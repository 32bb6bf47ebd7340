"""Who may import whom (DESIGN.md), read from the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = (
    "bench.core", "bench.datasets", "bench.models", "bench.training", "bench.evaluate", "attacks", "certifiers",
    "defenses", "leaderboard",
)  # fmt: skip
MAY_IMPORT = {
    "bench.core": set(),
    "attacks": {"bench.core"},
    "certifiers": {"bench.core"},
    "bench.datasets": {"bench.core"},
    "bench.models": {"bench.core"},
    "bench.training": {"bench.core", "bench.datasets", "bench.models"},
    "bench.evaluate": {"bench.core", "bench.datasets", "bench.models"},
    "defenses": {"bench.core", "bench.training", "attacks", "certifiers"},
    "leaderboard": {
        f"bench.core.{name}" for name in ("records", "table", "files", "errors", "config")
    },  # no torch in them
}
OURS = ("bench", "attacks", "certifiers", "defenses", "leaderboard")


def modules():
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imports(path):
    """Every module of ours that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in OURS}


def room_of(module):
    return next((room for room in ROOMS if module == room or module.startswith(f"{room}.")), "roof")


def test_each_room_imports_only_what_it_may():
    for module, path in modules():
        room = room_of(module)
        if room == "roof":
            continue
        for name in imports(path):
            allowed = room_of(name) == room or any(name.startswith(f"{other}.") for other in MAY_IMPORT[room])
            assert allowed, f"{module} imports {name}"


def test_defenses_do_not_import_one_another():
    for module, path in modules():
        if module.startswith("defenses."):
            assert not [name for name in imports(path) if name.startswith("defenses.")], module


def test_there_is_no_circle():
    known = dict(modules())
    graph = {
        module: {n if n in known else n.rpartition(".")[0] for n in imports(path)} & set(known) - {module}
        for module, path in known.items()
    }
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, f"circle: {' -> '.join([*open_, module])}"
        if module not in done:
            open_.append(module)
            for other in graph[module]:
                visit(other)
            open_.pop()
            done.add(module)

    for module in graph:
        visit(module)


def test_nothing_that_the_conventions_forbid():
    for module, path in modules():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert "*" not in [alias.name for alias in node.names], module
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "globals", "exec"), module
            if isinstance(node, ast.Attribute):
                assert node.attr != "cuda" or ast.unparse(node) == "torch.cuda", f"{module}: {ast.unparse(node)}"
        assert path.read_text().isascii(), f"{module} is not ASCII"
