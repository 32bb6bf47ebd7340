import re
import sys

import pytest

from bench.core.errors import UserError
from bench.core.extras import import_extra


def test_a_module_that_is_there_is_returned():
    assert import_extra("json.decoder", "none", "a test") is sys.modules["json.decoder"]


def test_a_missing_package_is_named_with_the_extra_that_has_it():
    text = "--store needs no_such_package, which is not installed; pip install 'robust-bracket[store]'"
    with pytest.raises(UserError, match=rf"\A{re.escape(text)}\Z"):
        import_extra("no_such_package.core", "store", "--store")


def test_a_package_that_fails_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "failing_package.py").write_text("raise RuntimeError('built for another torch\\nsecond line')\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = "failing_package, which cannot be imported (RuntimeError: built for another torch); pip install 'robust-"
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        import_extra("failing_package", "timm", "timm.resnet18")
    assert "\n" not in str(caught.value)
