"""Figures 3.1 to 3.3 and 3.8: what is drawn, and the numbers beside it."""

import re

import pytest
import torch

from bench.core.errors import UserError
from bench.studies.certified_training.certified_figures import CertifiedFiguresStudy, entries


def test_the_lines_of_relu(tmp_path):
    pytest.importorskip("matplotlib")
    report = CertifiedFiguresStudy(figure=str(tmp_path / "lines.svg")).run()
    # Eq. 3.4: the slope is high / (high - low), and the lines are -low high / (high - low) apart
    assert re.search(r"\| \[-1\.5, 2\] +\| +0\.5714 +\| +0\.5714 +\| +0\.8571 \|", report)
    assert (tmp_path / "lines.svg").read_text().count('<g id="axes_') == 3
    tanh = CertifiedFiguresStudy(figure=str(tmp_path / "tanh.svg"), activation="tanh", relaxation="crown").run()
    assert "tanh, crown" in tanh


@pytest.mark.slow
def test_non_uniform_boxes_are_larger(tmp_path):
    pytest.importorskip("matplotlib")
    few = {"dataset": "nearest-seed:train=600:test=20", "epochs": 30, "threads": 1}
    report = CertifiedFiguresStudy(of="boxes", figure=str(tmp_path / "boxes.svg"), **few).run()
    uniform, own = map(float, re.findall(r"uniform ([\d.]+)", report))
    assert own > uniform > 0


def test_the_weights_of_files(tmp_path):
    pytest.importorskip("matplotlib")
    state = {
        "a.weight": torch.tensor([[0.5, -2.0]]),
        "a.bias": torch.tensor([9.0]),
        "b.weight": torch.zeros(2, 1, 1, 1),
    }
    torch.save(state, tmp_path / "net.pt")
    assert entries(tmp_path / "net.pt").tolist() == [0.5, -2.0, 0.0, 0.0]
    given = {"of": "weights", "figure": str(tmp_path / "weights.svg")}
    report = CertifiedFiguresStudy(**given, checkpoints=(f"mine={tmp_path / 'net.pt'}",)).run()
    assert re.search(r"\| mine +\| +4 \| +1\.1087 \| +2\.000 \| +50\.0 \|", report)
    for wrong, words in (((), "name them"), (("mine=none.pt",), "write NAME=FILE")):
        with pytest.raises(UserError, match=words):
            CertifiedFiguresStudy(**given, checkpoints=wrong).run()
