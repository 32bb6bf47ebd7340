"""`bench study corruptions`, once at a tiny size, and its table on known histories."""

import json

import numpy as np
import pytest

from bench.core import registry
from bench.studies.adversarial_training import corruptions
from bench.studies.adversarial_training.corruptions import OWN, PRINTED, CorruptionsStudy, Trained, table_4_4
from bench.studies.adversarial_training.difficulty import Plan
from bench.studies.adversarial_training.instance_difficulty import History
from bench.studies.claims import Findings

TINY = {"steps": 1, "alpha": "1eps"}


def test_the_thesis_has_a_column_for_each_corruption_that_is_made():
    assert set(PRINTED) == set(registry.corruption.names())


def history(rng, like=None):
    loss = rng.random((50, 2)) if like is None else like + 1e-3 * rng.random((50, 2))
    return History(loss, (loss > 0.5).astype(float))


@pytest.mark.parametrize("far", [True, False])
def test_distances_decide_the_claims(far):
    """Losses under corruptions are those of clean images, or others."""
    rng = np.random.default_rng(0)
    base, names = rng.random((50, 2)), list(PRINTED)[:5]
    runs = {
        kind: [
            Trained({OWN: history(rng, base)} | {name: history(rng, None if far else base) for name in names})
            for _ in range(3)
        ]
        for kind in ("clean", "FGSM", "PGD")
    }
    found = Findings()
    table_4_4(Plan(50, 3, 2, 0.1, TINY, ""), runs, names, found)
    assert found.claims[0].verdict == ("holds" if far else "not tested at this size")
    assert [row[0] for row in found.tables[0].rows] == names


@pytest.mark.slow
def test_the_study_reports_its_figures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(corruptions, "TEST", 20)
    monkeypatch.setitem(corruptions.PLANS, ("digits", True), Plan(60, 3, 2, 0.1, TINY, ""))
    result = json.loads(CorruptionsStudy(json=True, figure=str(tmp_path / "a.svg")).run())
    assert len(result["tables"][0]["rows"]) == 17  # saturate needs colours
    assert [row["corruption"] for row in result["tables"][1]["rows"]][-1] == "mean"
    assert all(claim["measured"] for claim in result["claims"])
    assert "D-distance" in (tmp_path / "a.svg").read_text()
