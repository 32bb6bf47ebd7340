import json

import numpy as np
import pytest

from bench.core.errors import UserError
from bench.studies.reflected_loss.reflected_binary import ATTACKS, ReflectedBinaryStudy, order_of
from bench.studies.reproduction.paper_tables import read_paper_table
from bench.studies.reproduction.reproduce_thesis import ReproduceStudy

ROWS = ("Standard", "R-PGD-2")


@pytest.fixture
def folder(tmp_path):
    """Images of three classes, told apart by their brightness, as mnist.npz."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 10
    x = (20 * y[:, None, None] + rng.integers(0, 20, (90, 28, 28))).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return str(tmp_path)


@pytest.mark.slow
def test_each_training_is_attacked_in_eight_ways(folder):
    study = ReflectedBinaryStudy(
        data_dir=folder, threads=1, seeds=1, epochs=1, rows=("Standard", "R-PGD-2"), form="json"
    )
    figures = json.loads(study.run())["figures"]
    assert [(each["row"], each["figure"]) for each in figures] == [(row, name) for row in ROWS for name in ATTACKS]
    assert figures[0]["paper"] == 23.6
    assert all(0 <= each["ours"] <= 100 for each in figures)
    by_name = {each["figure"]: each["ours"] for each in figures[:8]}
    assert by_name["FGSM"] == by_name["R-FGSM"]  # sign steps of the two losses are the same for two classes
    assert by_name["BIM"] == by_name["R-BIM"]


def test_what_was_run_shorter_is_said(folder):
    text = ReflectedBinaryStudy(data_dir=folder, threads=1, seeds=1, epochs=1, rows=("Standard",)).run()
    assert "1 seeds instead of 10, 1 epochs instead of 20" in text
    assert "each two trainings" not in text  # a single row has no order


def test_the_order_of_each_two_trainings_is_tested():
    paper = read_paper_table("reflected-1")
    errors = {"Standard": [0.28, 0.29, 0.28], "PGD-inf": [0.003, 0.003, 0.004], "PGD-2": [0.003, 0.004, 0.003]}
    (text,) = order_of(errors, paper, grain=0.001)
    verdicts = {line.split("|")[1].strip(): line.split("|")[5].strip() for line in text.splitlines()[4:]}
    assert verdicts == {
        "PGD-2 - PGD-inf": "not decided", "Standard - PGD-inf": "as in the paper",
        "Standard - PGD-2": "as in the paper",
    }  # fmt: skip
    assert "|   +26.2 |" in text  # Standard - PGD-2 of the paper
    (text,) = order_of({"Standard": [0.0, 0.0], "PGD-2": [0.3, 0.3]}, paper, grain=0.001)
    assert "| -30.00 [" in text
    assert "reversed" in text
    assert order_of({"Standard": [0.3], "PGD-2": [0.1]}, paper, grain=0.001) == []


def test_the_table_is_one_of_reproduce(folder, monkeypatch):
    monkeypatch.setattr(ReflectedBinaryStudy, "run", lambda self: f"{self.data_dir} {self.form}")
    assert ReproduceStudy(table="reflected-1", data_dir=folder, form="csv").run() == f"{folder} csv"


@pytest.mark.parametrize(("options", "said"), [({"seeds": 0}, "at least 1"), ({"rows": ("PGD",)}, "not one of")])
def test_options_that_are_not_valid(options, said):
    with pytest.raises(UserError, match=said):
        ReflectedBinaryStudy(**options).run()
