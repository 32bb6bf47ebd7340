"""The structure of the source (DESIGN.md): which room imports which, sizes of files and signatures."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("bench", "attacks", "certifiers", "defenses", "leaderboard")
MAY_IMPORT = {
    "bench.core": (),
    "bench.datasets": ("bench.core",),
    "bench.models": ("bench.core",),
    "bench.sanity": ("bench.core", "bench.datasets"),
    "bench.training": ("bench.core", "bench.datasets", "bench.models"),
    "bench.evaluate": ("bench.core", "bench.datasets", "bench.models", "bench.sanity"),
    "bench.verify": ("bench.core", "bench.datasets", "bench.models", "bench.training", "bench.evaluate"),
    "attacks": ("bench.core",),
    "certifiers": ("bench.core",),
    "defenses": ("bench.core", "bench.training", "attacks", "certifiers"),
    "leaderboard": tuple(
        f"bench.core.{name}"
        for name in (
            "bounded_text", "clopper_pearson", "config", "counts", "errors", "example_table", "files", "folders",
            "network_format", "proof_format", "record_checks", "record_command", "record_files", "record_verdict",
            "records", "registry", "sealed_json", "spec_text", "verification",
        )
    ),  # the modules that do not import torch
}  # fmt: skip
ROOF = ("runs", "publish", "studies", "commands", "testing", "cli", "api", "__main__", "__init__")
MANY_PARAMETERS = {
    "attacks.ascent.ascend": "one parameter per option of the algorithm",
    "bench.api.evaluate": "the interface for users",
    "bench.api.train": "the interface for users",
    "bench.models.two_layer.two_layer": "one parameter per option of the four papers' networks",
}


def modules():
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


@cache
def nodes(path):
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path):
    """Every module of ours that a file imports, at its top or inside a function."""
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


def is_in(name, room):
    return name == room or name.startswith(f"{room}.")


def room_of(module):
    return next((room for room in MAY_IMPORT if is_in(module, room)), "roof")


def test_each_room_imports_only_what_it_may():
    for module, path in modules():
        room = room_of(module)
        for name in imports(path) if room != "roof" else ():
            allowed = is_in(name, room) or any(is_in(name, other) for other in MAY_IMPORT[room])
            assert allowed, f"{module} imports {name}"


def test_every_file_of_bench_is_in_a_room():
    for module, _ in modules():
        if module.startswith("bench.") and room_of(module) == "roof":
            assert module.split(".")[1] in ROOF, f"{module} is in no room of DESIGN.md"
    loose = {path.name for path in (ROOT / "bench").glob("*.py")}
    assert loose <= {"__init__.py", "__main__.py", "api.py", "cli.py"}


def test_defenses_do_not_import_one_another():
    for module, path in modules():
        if module.startswith("defenses."):
            assert not [name for name in imports(path) if name.startswith("defenses.")], module


def test_the_leaderboard_and_what_it_imports_do_not_import_torch():
    known = dict(modules())
    waiting = [module for module in known if is_in(module, "leaderboard")]
    visited = set(waiting)
    while waiting:
        path = known[waiting.pop()]
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "torch"], path
        below = {name if name in known else name.rpartition(".")[0] for name in imports(path)} & set(known)
        waiting += sorted(below - visited)
        visited |= below


def test_there_is_no_circle():
    known = dict(modules())
    graph = {
        module: {n if n in known else n.rpartition(".")[0] for n in imports(path)} & set(known) - {module}
        for module, path in known.items()
    }
    finished, open_ = set(), []

    def visit(module):
        assert module not in open_, f"circle: {' -> '.join([*open_, module])}"
        if module not in finished:
            open_.append(module)
            for other in graph[module]:
                visit(other)
            open_.pop()
            finished.add(module)

    for module in graph:
        visit(module)


def test_every_file_has_fewer_than_300_lines():
    for module, path in modules():
        assert len(path.read_text().splitlines()) < 300, module


def test_no_function_has_more_than_8_parameters():
    for module, path in modules():
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                n = len([each for each in arguments if each.arg not in ("self", "cls")])
                assert n <= 8 or f"{module}.{node.name}" in MANY_PARAMETERS, f"{module}.{node.name} has {n}"


def test_nothing_that_the_conventions_forbid():
    for module, path in modules():
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom):
                assert "*" not in [alias.name for alias in node.names], module
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "globals", "exec"), module
            if isinstance(node, ast.Attribute):
                assert node.attr != "cuda" or ast.unparse(node) == "torch.cuda", f"{module}: {ast.unparse(node)}"
        assert path.read_text().isascii(), f"{module} is not ASCII"
