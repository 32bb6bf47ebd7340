import hashlib
import inspect
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from bench.core import registry
from bench.core.errors import UserError

KINDS = ("attack", "certifier", "defense", "dataset", "corruption", "model", "study")
PLUGIN = '''
from bench.core import registry

@registry.attack("{name}")
class Shift:
    """Shifts all pixels.

    More words.
    """
'''


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    """What a test registers or imports is gone afterwards."""
    for kind in KINDS:
        monkeypatch.setattr(getattr(registry, kind), "_plugins", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("bench_"):
            del sys.modules[name]


@pytest.fixture
def plugin(tmp_path):
    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def entry_points(monkeypatch):
    """Replaces the installed entry points by the given (name, value) pairs of the attacks' group."""

    def install(*pairs):
        group = "robust_bracket.attacks"
        points = [EntryPoint(name, value, group) for name, value in pairs]
        monkeypatch.setattr(registry, "installed_plugins", lambda group: points if group == points[0].group else [])

    return install


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_found_without_torch(kind):
    code = (
        f"import sys; from bench.core import registry; names = registry.{kind}.names(); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(*names)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == getattr(registry, kind).names()


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("attack", {"pgd", "fgsm", "autoattack", "random-noise"}),
        ("defense", {"standard", "pgd-at", "trades"}),
        ("dataset", {"digits", "cifar10", "fashion-mnist"}),
        ("model", {"small-cnn", "fc1", "resnet18"}),
    ],
)
def test_built_ins_are_known_and_sorted(kind, some):
    names = getattr(registry, kind).names()
    assert some <= set(names)
    assert names == sorted(names)


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_has_a_summary_and_loads_from_its_source(kind):
    for entry in getattr(registry, kind).entries().values():
        loaded = entry.load()
        assert loaded.__module__ == entry.source
        assert entry.summary == inspect.getdoc(loaded).partition("\n")[0] != ""


@pytest.mark.parametrize(("asked", "nearest"), [("pdg", "pgd"), ("autoatack", "autoattack"), ("PGD", None)])
def test_unknown_name_gives_the_nearest(asked, nearest):
    with pytest.raises(UserError, match=r"\A.*`bench list attacks`.*\Z") as caught:
        registry.attack.get(asked)
    assert f"'{asked}'" in str(caught.value)
    assert (f"did you mean '{nearest}'" in str(caught.value)) == (nearest is not None)
    assert asked not in registry.attack


def test_plugin_registers_and_its_hash_is_returned(plugin):
    path = plugin(PLUGIN.format(name="shift"))
    assert registry.load_plugin(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "shift" in registry.attack
    assert registry.attack.get("shift").__name__ == "Shift"
    assert registry.attack.entries()["shift"].summary == "Shifts all pixels."


def test_plugin_may_be_loaded_twice(plugin):
    path = plugin(PLUGIN.format(name="shift"))
    assert registry.load_plugin(path) == registry.load_plugin(path)


def test_built_in_name_is_refused_to_a_plugin(plugin):
    with pytest.raises(UserError, match=r"\A.*'pgd' is registered twice, by attacks.pgd and by bench_plugin_mine.*\Z"):
        registry.load_plugin(plugin(PLUGIN.format(name="pgd")))
    assert registry.attack.get("pgd").__module__ == "attacks.pgd"


def test_two_plugins_may_not_share_a_name(plugin):
    registry.load_plugin(plugin(PLUGIN.format(name="shift"), "first.py"))
    with pytest.raises(UserError, match=r"\A.*'shift' is registered twice.*first.*second.*\Z"):
        registry.load_plugin(plugin(PLUGIN.format(name="shift"), "second.py"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_thing", "ModuleNotFoundError"),
        ("def (", "SyntaxError"),
        ("raise ValueError('first\\nsecond')", "ValueError: first"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (PLUGIN.format(name="shift") + "\n1 / 0", "ZeroDivisionError"),
    ],
)
def test_failing_plugin_is_one_line_and_leaves_nothing(plugin, text, said):
    names, modules = registry.attack.names(), set(sys.modules)
    with pytest.raises(UserError, match=rf"\A.*mine.py fails to import \({said}.*\Z"):
        registry.load_plugin(plugin(text))
    assert not [name for name in set(sys.modules) - modules if name.startswith("bench_")]
    assert registry.attack.names() == names


@pytest.mark.parametrize(("name", "said"), [("missing.py", "does not exist"), ("notes.txt", "must end in .py")])
def test_what_is_no_python_file_is_a_user_error(plugin, tmp_path, name, said):
    plugin("x = 1", "notes.txt")
    with pytest.raises(UserError, match=rf"\A.*{name}.*{said}.*\Z"):
        registry.load_plugin(tmp_path / name)


def test_entry_point_is_found_and_loads_lazily(entry_points):
    entry_points(("theirs", "fractions:Fraction"), ("broken", "no_such_package:Thing"))
    assert {"theirs", "broken", "pgd"} <= set(registry.attack.names())
    assert registry.attack.get("theirs").__name__ == "Fraction"
    assert registry.attack.entries()["theirs"].source == "fractions:Fraction"
    assert "theirs" not in registry.defense


def test_entry_point_that_fails_to_load_is_a_user_error(entry_points):
    entry_points(("broken", "no_such_package:Thing"))
    with pytest.raises(UserError, match=r"\A.*'broken'.*no_such_package:Thing fails to load \(ModuleNotFound.*\Z"):
        registry.attack.get("broken")


@pytest.mark.parametrize("pairs", [[("pgd", "theirs:PGD")], [("a", "one:A"), ("a", "two:A")]])
def test_entry_point_may_not_take_a_name(entry_points, pairs):
    entry_points(*pairs)
    with pytest.raises(UserError, match=r"\A.*is registered twice.*\Z"):
        registry.attack.names()


def test_two_built_ins_may_not_share_a_name(tmp_path, monkeypatch):
    package = tmp_path / "twice"
    package.mkdir()
    for name in ("__init__", "one", "two"):
        (package / f"{name}.py").write_text("" if name == "__init__" else PLUGIN.format(name="same"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"\A.*'same' is registered twice, by twice.one and by twice.two.*\Z"):
        registry.Registry("attack", "twice").names()
