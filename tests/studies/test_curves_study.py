"""Learning curves from logs that are written here, and from a training."""

import json

import numpy as np
import pytest

from bench.core import files, record_files
from bench.core.errors import UserError
from bench.core.example_table import Threat, accuracy, union, worst
from bench.core.records import SCHEMA, Record, Sanity
from bench.studies.curves import CurvesStudy, curves_of
from bench.training.curves import KEYS


def run_folder(folder, lines, seed=0):
    """A finished run of four examples with this log."""
    label = np.zeros(4, np.int64)
    table = {"index": np.arange(4), "label": label, "prediction": label, "clean": label == 0}
    record = Record(
        schema=SCHEMA, suite=None, dataset="digits", model="fc1", parameters=None, defense="pgd-at", seed=seed,
        threat=Threat("Linf", 0.1), config={}, config_hash="", n_examples=4, clean=accuracy(table["clean"]),
        attacks={}, worst=worst(table), union=union(table), certifiers={}, training=None,
        sanity=Sanity("unchecked", []), artifacts={}, provenance={},
    )  # fmt: skip
    folder.mkdir(parents=True)
    record_files.write_record(folder, record)
    files.write_arrays(folder / record_files.TABLE, table)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def log(robust):
    """Lines with this robust test error, a training error of 0.1 and losses of 1."""
    fixed = {key: 0.1 if key.endswith("error") else 1.0 for key in KEYS}
    return [{"epoch": k, "loss": 1.0, **fixed, "test_robust_error": error} for k, error in enumerate(robust, start=1)]


def test_the_curves_of_a_log(tmp_path):
    curves = curves_of(run_folder(tmp_path / "run" / "0", log([0.5, 0.3, 0.4])))
    assert curves.epochs.tolist() == [1, 2, 3]
    assert curves.values["test_robust_error"].tolist() == [0.5, 0.3, 0.4]
    assert set(curves.values) == set(KEYS)
    assert curves_of(run_folder(tmp_path / "other" / "0", [{"epoch": 1, "loss": 2.0}])) is None


def test_overfitting_is_a_rise_of_the_robust_test_error_after_its_middle(tmp_path):
    for seed, end in enumerate((0.5, 0.52, 0.51)):
        run_folder(tmp_path / "runs" / "run" / str(seed), log([0.6, 0.5, 0.3, 0.3, 0.4, end]), seed)
    run_folder(tmp_path / "runs" / "plain" / "0", [{"epoch": 1, "loss": 2.0}])
    result = json.loads(CurvesStudy(runs=(str(tmp_path / "runs"),), json=True).run())
    assert [claim["verdict"] for claim in result["claims"]] == ["holds", "holds"]
    assert "rise 15" in result["claims"][0]["measured"]  # (0.4 + 0.51) / 2 - 0.3
    assert result["notes"][0].startswith("1 of 4 runs have no curves")
    robust = next(table for table in result["tables"] if table["title"] == "test, robust, error")
    assert robust["rows"][0]["least in epoch"] == 3


def test_a_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    run_folder(tmp_path / "runs" / "run" / "0", log([0.5, 0.3, 0.4]))
    report = CurvesStudy(runs=(str(tmp_path / "runs"),), figure=str(tmp_path / "a.svg")).run()
    assert "one run" in report
    assert "robust error" in (tmp_path / "a.svg").read_text()


def test_mistakes_are_one_line(tmp_path):
    run_folder(tmp_path / "runs" / "run" / "0", [{"epoch": 1, "loss": 2.0}])
    with pytest.raises(UserError, match="keep_curves"):
        CurvesStudy(runs=(str(tmp_path / "runs"),)).run()
    (tmp_path / "runs" / "run" / "0" / "log.jsonl").write_text("not json\n")
    with pytest.raises(UserError, match="not the log"):
        CurvesStudy(runs=(str(tmp_path / "runs"),)).run()
