import sys
from pathlib import Path

import pytest

from bench.core import source_code
from bench.core.opened_files import record_opened_files
from bench.core.package_origins import ROOT, installed_folders
from bench.core.source_code import closure, combined
from tests.core import example_package  # a package of the user that is imported, with a lazy import

HERE = Path(__file__).parent


def closure_of(path, text):
    path.write_text(text)
    return closure([path])


@pytest.mark.parametrize(("before", "after"), [
    ("a = 1\n", "# why\na = 1  # and more\n"),
    ("def f():\n    return 1\n", 'def f():\n    """Returns one."""\n\n    return 1\n'),
    ('class A:\n    """Old."""\n\n    x: int = 1\n', 'class A:\n    """New."""\n\n    x: int = 1\n'),
    ("f(1, 2)\n", "f(\n    1,\n    2,\n)\n"),
])  # fmt: skip
def test_prose_and_layout_do_not_count(tmp_path, before, after):
    assert closure_of(tmp_path / "a.py", before) == closure_of(tmp_path / "a.py", after)


@pytest.mark.parametrize(("before", "after"), [
    ("a = 1\n", "a = 2\n"), ("a = 1\n", "a = 1.0\n"), ("a = 1\n", "a = True\n"), ("a = 'x'\n", "a = b'x'\n"),
    ("def f(x): return x\n", "def f(x, /): return x\n"), ("a + b\n", "a - b\n"), ("a.b\n", "a.c\n"),
    ("def f():\n    'doc'\n    return 1\n", "def f():\n    'doc'\n    return 2\n"),
    ("f(1, 2)\n", "f(2, 1)\n"), ("a = [1]\n", "a = [1, 1]\n"), ("x = 'a' 'b'\n", "x = 'a', 'b'\n"),
])  # fmt: skip
def test_code_counts(tmp_path, before, after):
    assert closure_of(tmp_path / "a.py", before) != closure_of(tmp_path / "a.py", after)


def test_the_closure_follows_our_imports_but_not_those_for_types_only():
    names = closure([ROOT / "bench/runs/train.py"])
    assert {"bench/training/loop.py", "bench/core/seeds.py", "bench/core/__init__.py", "torch"} <= set(names)
    assert "bench/runs/plan.py" not in names  # imported under TYPE_CHECKING
    assert "json" not in names  # the standard library does not count


def test_attacks_that_a_module_looks_up_by_name_count():
    assert {"attacks/fgsm.py", "attacks/pgd.py"} <= set(closure([ROOT / "bench/training/probe.py"]))
    assert "attacks/square.py" in closure([ROOT / "bench/sanity/checks.py"])
    assert "attacks/square.py" not in closure([ROOT / "bench/training/probe.py"])


def test_imports_of_the_users_files_are_followed_even_inside_functions():
    names = closure([Path(example_package.__file__)])
    assert {"__init__.py", "used.py", "used_later.py"} <= set(names)


def test_an_installed_package_counts_by_its_version(tmp_path):
    assert closure_of(tmp_path / "a.py", "import numpy.linalg\nimport msgspec\n").keys() == {"a.py", "numpy", "msgspec"}


@pytest.mark.parametrize("name", ["site-packages", "dist-packages"])
def test_packages_that_another_installation_shares_are_not_read(tmp_path, monkeypatch, name):
    """Those of the system in an environment that sees them, of the user, and of PYTHONPATH."""
    folder = tmp_path / name
    for package, text in {"one_heavy": "import two_heavy\n", "two_heavy": "a = 1\n"}.items():
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(text)
    (folder / "one_file.py").write_text("import one_heavy\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(source_code, "INSTALLED", installed_folders([str(folder), str(tmp_path)]))
    assert closure_of(tmp_path / "a.py", "import one_heavy\n").keys() == {"a.py"}
    assert closure([folder / "one_heavy/__init__.py"]).keys() == {"__init__.py"}  # an installed plugin
    assert closure([folder / "one_file.py"]).keys() == {"one_file.py"}


def test_files_of_the_same_name_are_told_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text(f"name = '{folder}'\n")
    names = closure([tmp_path / "x/a.py", tmp_path / "y/a.py"])
    assert list(names) == ["a.py", "a.py (2)"]
    assert len(set(names.values())) == 2


def test_one_hash_for_all_depends_on_each():
    hashes = {"a": "1", "b": "2"}
    assert combined(hashes) == combined(dict(reversed(hashes.items())))
    assert combined(hashes) != combined({"a": "1", "b": "3"})


def test_data_files_that_code_opens_are_recorded_and_no_others(tmp_path):
    data, hidden = tmp_path / "mean.txt", tmp_path / ".hidden"
    for path in (data, hidden, tmp_path / "before.txt"):
        path.write_text("1")
    (tmp_path / "before.txt").read_text()
    opened = set()
    with record_opened_files(opened):
        for path in (data, hidden, Path(__file__), Path(sys.executable)):
            path.read_bytes()
        (tmp_path / "written.txt").write_text("2")
    data.read_text()
    assert opened == {data.resolve()}
