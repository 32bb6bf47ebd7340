import csv

import numpy as np
import pytest

from bench.core import files, record_files
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Threat, accuracy, attack_specs, union, worst
from bench.core.records import SCHEMA, AttackResult, Record, Sanity
from bench.studies.attack_curves import AttackCurvesStudy, Setting, curves_of, name_runs

PGD = {
    "robust/pgd-10": np.array([0, 0, 1, 1, 0], np.bool_),
    "passes/pgd-10": np.array([3, 20, 21, 21, 0], np.int64),  # the last example is misclassified without an attack
}
FAB = {
    "robust/fab": np.array([0, 0, 1, 1, 0], np.bool_),
    "distance/fab": np.array([0.05, 0.09, 0.2, np.inf, 0], np.float32),
}
SEVERAL = {
    "robust/pgd-10:eps=0.05": np.array([0, 1, 1, 1, 0], np.bool_),
    "robust/pgd-10:eps=0.2": np.array([0, 0, 0, 1, 0], np.bool_),
    "robust/pgd-10:eps=0.5:norm=L2": np.array([1, 1, 1, 1, 0], np.bool_),
}


def run_folder(folder, columns):
    """A finished run of five examples under Linf 0.1, with these columns."""
    label = np.zeros(5, np.int64)
    prediction = np.array([0, 0, 0, 0, 1])
    table = {"index": np.arange(5), "label": label, "prediction": prediction, "clean": label == prediction} | columns
    attacks = {}
    for spec in attack_specs(table):
        share = accuracy(table[f"robust/{spec}"])
        attacks[spec] = AttackResult(share.acc, share.ci95, forwards=0, backwards=0, seconds=0)
    record = Record(
        schema=SCHEMA, suite=None, dataset="digits", model="fc1", parameters=None, defense="atas", seed=0,
        threat=Threat("Linf", 0.1), config={}, config_hash="", n_examples=5, clean=accuracy(table["clean"]),
        attacks=attacks, worst=worst(table), union=union(table), certifiers={}, training=None,
        sanity=Sanity("unchecked", []), artifacts={}, provenance={},
    )  # fmt: skip
    folder.mkdir(parents=True)
    record_files.write_record(folder, record)
    files.write_arrays(folder / record_files.TABLE, table)
    return folder


def test_accuracy_falls_at_the_pass_that_breaks_an_example(tmp_path):
    (curve,) = curves_of(run_folder(tmp_path / "run" / "0", PGD))
    assert (curve.run, curve.attack, curve.against, curve.steps) == ("run/0", "pgd-10", "passes", True)
    assert [curve.read(x) for x in (0, 2, 3, 19, 20, 21)] == [0.8, 0.8, 0.6, 0.6, 0.4, 0.4]
    assert curve.x[-1] == 21  # the last pass spent on the robust examples
    assert curve.table_points == [10, 21]


def test_a_minimum_norm_attack_gives_accuracy_at_every_eps(tmp_path):
    (curve,) = curves_of(run_folder(tmp_path / "run" / "0", FAB))
    assert (curve.against, curve.norm) == ("eps", "Linf")
    assert [round(curve.read(x), 3) for x in (0, 0.049, 0.051, 0.1, 0.3, 9)] == [0.8, 0.8, 0.6, 0.4, 0.2, 0.2]
    assert curve.x[-1] == np.float32(0.2)  # the example that no perturbation broke has no point
    assert curve.read(0.1) == PGD["robust/pgd-10"].mean()
    assert curve.table_points == [0.05, 0.1, 0.2]


def test_an_attack_at_several_eps_of_one_norm_is_one_curve(tmp_path):
    curves = list(curves_of(run_folder(tmp_path / "run" / "0", SEVERAL | {"robust/pgd-10": PGD["robust/pgd-10"]})))
    (curve,) = curves
    assert (curve.attack, curve.norm, curve.steps) == ("pgd-10", "Linf", False)
    assert curve.x.tolist() == [0.05, 0.1, 0.2]
    assert curve.accuracy.tolist() == [0.6, 0.4, 0.2]


@pytest.mark.slow
def test_the_figure_the_points_and_the_report(tmp_path):
    pytest.importorskip("matplotlib")
    for name, columns in (("a", PGD | FAB), ("b", PGD | SEVERAL)):
        run_folder(tmp_path / name / "0", columns)
    figure = tmp_path / "curves.png"
    report = AttackCurvesStudy(runs=(str(tmp_path / "a"), str(tmp_path / "b")), figure=str(figure)).run()
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "60.0 at 10, 40.0 at 21" in report
    assert f"figure: {figure}\npoints: {tmp_path / 'curves.csv'}" in report
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["run"], row["against"]) for row in rows} == {
        ("a/0", "passes"), ("a/0", "eps"), ("b/0", "passes"), ("b/0", "eps"),
    }  # fmt: skip
    ours = [(float(row["at"]), float(row["robust_acc"])) for row in rows if row["run"] == "a/0"]
    assert ours[:4] == [(0, 0.8), (3, 0.6), (20, 0.4), (21, 0.4)]


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "panels"), [(PGD, 1), (FAB, 1), (PGD | FAB, 2)])
def test_there_is_a_panel_for_each_kind_of_curve_and_no_empty_one(columns, panels, tmp_path):
    pytest.importorskip("matplotlib")
    run_folder(tmp_path / "run" / "0", columns)
    AttackCurvesStudy(runs=(str(tmp_path / "run"),), figure=str(tmp_path / "curves.svg")).run()
    assert (tmp_path / "curves.svg").read_text().count('<g id="axes_') == panels


def test_titles_say_what_runs_share_and_legends_what_they_do_not_without_hashes():
    base = Setting("digits", "cnn", "Linf 0.2", "atas", "seed 0", "360 examples")
    title, names = name_runs({"digits-atas-aa0fc6ac77bd/0": base})
    assert (title, set(names.values())) == ("digits, cnn, Linf 0.2, atas, seed 0, 360 examples", {""})
    title, names = name_runs({"a/0": base, "a/1": base._replace(seed="seed 1"), "b/0": base._replace(defense="trades")})
    assert title == "digits, cnn, Linf 0.2, 360 examples"
    assert names == {"a/0": "atas, seed 0", "a/1": "atas, seed 1", "b/0": "trades, seed 0"}
    assert set(name_runs({"a/0": base, "b/0": base})[1].values()) == {"(1)", "(2)"}


def test_runs_without_such_columns_and_changed_runs_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    figure = str(tmp_path / "curves.png")
    folder = run_folder(tmp_path / "run" / "0", {"robust/pgd-10": PGD["robust/pgd-10"]})
    with pytest.raises(UserError, match="bench eval"):
        AttackCurvesStudy(runs=(str(folder),), figure=figure).run()
    files.write_arrays(folder / record_files.TABLE, {"index": np.arange(5)})
    with pytest.raises(CheckError, match="changed"):
        AttackCurvesStudy(runs=(str(folder),), figure=figure).run()
