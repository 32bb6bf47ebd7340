import importlib.util
import sysconfig
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from bench.core.errors import UserError
from bench.core.package_origins import check_package_origins, installed_folders


def test_our_own_packages_pass():
    check_package_origins()


@pytest.mark.parametrize("spec", [None, "regular", "namespace"])
def test_a_package_of_another_project_or_a_missing_one_is_named(monkeypatch, tmp_path, spec):
    find = importlib.util.find_spec
    other = ModuleSpec("attacks", None, origin=str(tmp_path / "__init__.py") if spec == "regular" else None)
    other.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: (other if spec else None) if name == "attacks" else find(name)
    )
    with pytest.raises(UserError, match=rf"\Apackage 'attacks' .*{tmp_path if spec else 'missing'}.*\Z"):
        check_package_origins()


def test_installed_folders_are_those_of_packages_and_those_inside_others_come_first(tmp_path):
    library = Path(sysconfig.get_path("stdlib")).resolve()
    inside = library / "vendor/site-packages"  # such as those of a Python that is no environment
    found = installed_folders([str(inside), str(tmp_path / "dist-packages"), str(tmp_path)])
    assert {library, inside, tmp_path / "dist-packages"} <= set(found)
    assert tmp_path not in found
    assert found.index(inside) < found.index(library)
