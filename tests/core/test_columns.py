import os

import pytest

from bench.core import columns as module
from bench.core.columns import columns

ROWS = [("pgd", "several steps of projected gradient descent " * 4), ("random-noise", "noise"), ("x", "")]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_terminal_rows_are_wrapped_at_words(width, monkeypatch):
    monkeypatch.setattr(module.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module.shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
    lines = columns(ROWS, indent="  ").splitlines()
    assert max(map(len, lines)) <= width
    assert all(line[:16].strip() in ("", "pgd", "random-noise", "x") for line in lines)
    assert " ".join(" ".join(line[16:] for line in lines).split()) == f"{ROWS[0][1].strip()} noise"


def test_elsewhere_a_row_is_a_line():
    lines = columns(ROWS).splitlines()
    assert lines == [f"pgd           {ROWS[0][1].strip()}", "random-noise  noise", "x"]
