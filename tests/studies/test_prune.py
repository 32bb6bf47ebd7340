"""`bench study prune`: the settings of each cell, and a report of tiny networks."""

import json

import pytest

from bench.core import registry
from bench.core.config import make_config
from bench.core.errors import UserError
from bench.runs.train import loop_of
from bench.studies.reproduction.paper_tables import read_paper_table
from bench.studies.reproduction.reproduce_thesis import ReproduceStudy
from bench.studies.subnetworks import prune
from bench.studies.subnetworks.prune import Cell, PruneStudy, compared
from bench.studies.subnetworks.prune_rows import cells_of, training_of

TINY = {"dataset": "fake:shape=1+8+8:train=40:test=20", "model": "small-cnn:width=4:hidden=16:batchnorm=true"}


@pytest.mark.parametrize(("table", "row", "column", "defense", "settings"), [
    ("5.2", "gamma = 0.2", "r = 0.5", "binary-subnet", {"r": "0.5", "gamma": "0.2"}),
    ("5.3", "no LBN", "a = 0.1", "binary-subnet",
     {"r": "0.9", "gamma": "0.1", "last_norm": "false", "score_range": "0.1"}),
    ("5.4", "gamma = 1.0", "Kaiming, LBN", "binary-subnet",
     {"r": "0.9", "gamma": "1.0", "last_norm": "true", "init": "kaiming", "score_start": "fan-in"}),
    ("5.5", "gamma = 0.0", "Binary, no LBN", "binary-subnet",
     {"r": "0.9", "gamma": "0.0", "last_norm": "false", "score_range": "0.1", "adversary": "none"}),
    ("5.7", "AT, RN34-LBN, not pruned", "Binary", "pgd-at", {"last_norm": "true", "binary": "true"}),
    ("5.7", "HYDRA, RN34, p = 0.1", "FP", "hydra", {"r": "0.9", "gamma": "0.1", "last_norm": "false"}),
    ("5.8", "ATMC, RN34-LBN, global", "Binary", "atmc",
     {"r": "0.9", "allocation": "global", "last_norm": "true", "bits": "1"}),
    ("5.8", "ATMC, RN34, p = 1.0", "FP", "atmc",
     {"r": "0.9", "gamma": "1.0", "allocation": "layer", "last_norm": "false"}),
    ("5.8", "RST, RN34-LBN, p = 1.0", "FP", "rst", {"r": "0.9", "gamma": "1.0", "last_norm": "true"}),
    ("5.8", "Ours (fast), RN34-LBN, p = 0.1", "Binary", "binary-subnet-fast",
     {"r": "0.9", "gamma": "0.1", "score_range": "0.001"}),
])  # fmt: skip
def test_the_training_of_a_cell(table, row, column, defense, settings):
    assert training_of(table, row, column, 0.9) == (defense, settings)


@pytest.mark.parametrize("table", ["5.2", "5.3", "5.4", "5.5", "5.7", "5.8", "5.9"])
def test_every_cell_has_a_training_with_valid_settings(table):
    paper = read_paper_table(f"thesis-{table}")
    found = [training_of(table, row, column, 0.9) for row, column, _ in cells_of(paper.blocks[0], paper.columns)]
    assert sum(each is None for each in found) == {"5.7": 2, "5.8": 8, "5.9": 2}.get(table, 0)  # the small RN34
    for each in found:
        if each is not None:
            make_config(registry.defense.get(each.defense).config_class, each.defense, each.settings)


def test_the_report_has_the_thesis_figures_and_the_test_of_two_gammas(tmp_path):
    options = {"rows": ("gamma = 0.1", "gamma = 1.0"), "columns": ("r = 0.9",), "epochs": 1, "seeds": 2, "fast": True}
    figure = str(tmp_path / "curves.svg")
    text = PruneStudy(**TINY, **options, attack="pgd-2", figure=figure, device="cpu", threads=1).run()
    assert "(28.1)" in text
    assert "(42.1)" in text
    assert "r = 0.9: gamma = 0.1 minus gamma = 1.0" in text
    assert "(the thesis -14.0)" in text
    assert (tmp_path / "curves.svg").stat().st_size > 1000


def test_the_learning_curves_have_a_point_for_each_epoch(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(prune, "draw_curves", lambda _, cells: drawn.extend(cells))
    options = {"rows": ("gamma = 0.1",), "columns": ("r = 0.9",), "epochs": 3, "seeds": 1}
    PruneStudy(**TINY, **options, attack="pgd-2", figure=str(tmp_path / "it.svg"), device="cpu", threads=1).run()
    assert [len(cell.curve) for cell in drawn] == [3]


def test_flyingbird_plus_has_a_validation_split():
    study = PruneStudy(**TINY, table="5.7", rows=("dynamic",), columns=("FP",), epochs=1, device="cpu", threads=1)
    paper = read_paper_table("thesis-5.7")
    (plan,) = [plan for cell, plan in study.planned(paper.blocks[0], paper.columns) if "Bird+" in cell.row]
    loop, _ = loop_of(plan, plan.new_model(0), 0)
    assert loop.examples == 36  # of 40


def test_json_has_every_seed_and_what_is_kept():
    study = PruneStudy(**TINY, table="5.7", rows=("BCS", "AT"), columns=("FP",), epochs=1, r=0.9, attack="pgd-2",
                       json=True, device="cpu", threads=1)  # fmt: skip
    cells = json.loads(study.run())
    assert [cell["row"] for cell in cells] == [
        "AT, RN34, not pruned", "AT, RN34-LBN, not pruned", "BCS, RN34, dynamic",
    ]  # fmt: skip
    dense, _, sparse = cells
    assert dense["kept"] == [dense["weights"]] * 2
    assert max(sparse["kept"]) <= round(0.1 * sparse["weights"])
    assert len(sparse["robust"]) == 2


def test_the_difference_of_two_rows_has_an_interval():
    cells = [Cell("a", "r", 40.0, robust=[0.5, 0.52]), Cell("b", "r", 30.0, robust=[0.3, 0.32])]
    (line,) = compared(cells, ["r"], ["a", "b"], 100)
    assert line.startswith("r: a minus b: +20.0, 95 % interval [")
    assert line.endswith("(the thesis +10.0)")


@pytest.mark.parametrize(
    "options", [{"rows": ("none",)}, {"epochs": 0}, {"figure": "it.txt"}, {"r": 1.5, "table": "5.3"}]
)
def test_wrong_options_are_one_line(options):
    with pytest.raises(UserError):
        PruneStudy(**TINY, **options).run()


@pytest.mark.parametrize(("table", "said"), [("5.2", "bench study prune"), ("5.10", "has no study")])
def test_reproduce_says_where_these_tables_are(table, said):
    with pytest.raises(UserError, match=said):
        ReproduceStudy(table=table).run()
