"""The notebook docs/tutorial.ipynb runs from top to bottom."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def cells():
    """The code cells. A notebook with outputs would show the figures of one machine as if they were everyone's."""
    found = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in found)
    return ["".join(cell["source"]) for cell in found]


@pytest.mark.slow
def test_the_notebook_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, source in enumerate(cells()):
        exec(compile(source, f"cell {number}", "exec"), names)
    assert "better than" in capsys.readouterr().out  # the ranks
    assert set(names["runs"]["defense"]) == {"half-attacked", "pgd-at"}
    assert isinstance(names["board"], pandas.DataFrame)
