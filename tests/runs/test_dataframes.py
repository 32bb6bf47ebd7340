"""Runs and boards as DataFrames."""

import json
import sys

import numpy as np
import pytest

from bench.core.errors import UserError
from bench.core.example_table import Threat
from bench.core.files import sha256
from bench.core.record_files import read_record
from bench.core.verdict_files import ToolVerdicts, write_verdicts
from bench.runs.dataframes import leaderboard, load_runs
from tests.publish.published import flags, publish, table_of, write_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    monkeypatch.setattr("bench.runs.dataframes.read_run", read_record)  # made-up runs have no weights
    for name, hits in (("a", 30), ("b", 20)):
        write_run(tmp_path / "runs" / name, table_of(flags(50, hits), certified=flags(50, 5)), weights=name)
    return tmp_path / "runs"


def test_one_row_a_run(runs):
    found = load_runs(runs)
    assert found["robust/pgd-50"].tolist() == [0.6, 0.4]
    assert found["attacked"].tolist() == [0.6, 0.4]
    assert found["certified"].tolist() == [0.1, 0.1]
    assert found["training_passes"].tolist() == [7000, 7000]


def test_a_run_is_told_by_its_box_and_has_the_union_of_its_threat_models(runs):
    assert load_runs(runs)["union"].isna().all()
    larger = {"robust/pgd-50:eps=0.3": flags(50, 10), "passes/pgd-50:eps=0.3": np.full(50, 9)}
    several = table_of(flags(50, 30), **larger)
    write_run(runs / "c", several, weights="c", threat=Threat("Linf", 0.2, box=False))
    found = load_runs(runs)
    assert found["box"].tolist() == [True, True, False]
    assert found["union"].tolist()[2] == 0.2


def test_one_row_an_example_with_the_verdicts_of_tools(runs):
    record = sha256(runs / "a" / "record.json")
    write_verdicts(runs / "a", ToolVerdicts("tool", record, "0", {3: "holds"}, {}, []))
    found = load_runs(runs, rows="examples")
    assert len(found) == 100
    assert found.groupby("run")["robust/pgd-50"].sum().tolist() == [30, 20]
    assert found.dropna(subset="verdict/tool")[["index", "verdict/tool"]].values.tolist() == [[3, "holds"]]


def test_one_row_an_epoch(runs):
    (runs / "a" / "log.jsonl").write_text("".join(json.dumps({"epoch": n, "loss": 1 / n}) + "\n" for n in (1, 2)))
    assert load_runs(runs, rows="epochs")["loss"].tolist() == [1.0, 0.5]


def test_a_board_has_one_row_an_entry(tmp_path):
    pytest.importorskip("pandas")
    for name, hits in (("strong", 40), ("weak", 10)):
        publish(tmp_path / "results", name, [table_of(flags(50, hits))], trained=False)
    found = leaderboard(tmp_path / "results", "digits")
    assert found["name"].tolist() == ["strong", "weak"]
    assert found["rank"].tolist() == [1, 2]
    publish(tmp_path / "results", "other", [table_of(flags(50, 20))], trained=False, suite="mnist", dataset="mnist")
    assert leaderboard(tmp_path / "results", "digits")["name"].tolist() == ["strong", "weak"]
    every = leaderboard(tmp_path / "results")
    assert sorted(zip(every["suite"], every["name"], strict=True)) == [
        ("digits", "strong"), ("digits", "weak"), ("mnist", "other"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="suites with entries: digits, mnist"):
        leaderboard(tmp_path / "results", "cifar10")


def test_wrong_use_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    with pytest.raises(UserError, match=r"holds no record\.json"):
        load_runs(tmp_path)
    with pytest.raises(UserError, match="one of evaluations, examples, epochs"):
        load_runs(tmp_path, rows="seeds")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'robust-bracket\[pandas\]'"):
        load_runs(tmp_path)
