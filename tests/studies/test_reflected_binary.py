import json

import numpy as np
import pytest

from bench.core.errors import UserError
from bench.studies.reflected_loss.reflected_binary import ATTACKS, ReflectedBinaryStudy
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
    assert "the paper's Standard" in text


def test_the_table_is_one_of_reproduce(folder, monkeypatch):
    monkeypatch.setattr(ReflectedBinaryStudy, "run", lambda self: f"{self.data_dir} {self.form}")
    assert ReproduceStudy(table="reflected-1", data_dir=folder, form="csv").run() == f"{folder} csv"


@pytest.mark.parametrize(("options", "said"), [({"seeds": 0}, "at least 1"), ({"rows": ("PGD",)}, "not one of")])
def test_options_that_are_not_valid(options, said):
    with pytest.raises(UserError, match=said):
        ReflectedBinaryStudy(**options).run()
