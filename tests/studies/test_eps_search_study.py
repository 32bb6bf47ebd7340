import re

import numpy as np
import pytest
import torch

from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.models.mlp import fc1
from bench.studies.certified_training.eps_search import EpsSearchStudy, certified_radii, search_largest_eps
from tests.linear import linear_model
from tests.studies.distances import at_some_distance

SHAPE = (1, 2, 3)


def linear(norm):
    """A linear model, 20 images of which it gets the last three wrong, and how far each is from the others' side."""
    model = linear_model(SHAPE, 3)
    batch, far = at_some_distance(model, SHAPE, norm)
    y = batch.y.clone()
    y[-3:] = (y[-3:] + 1) % 3
    return model, Split.of_tensors(batch.x, y), np.where(np.arange(20) < 17, far.double().numpy(), 0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("method", ["bisection", "pec", "newton"])
def test_the_search_ends_at_the_distance_of_a_linear_models_boundary(norm, method):
    model, test, far = linear(norm)
    result = search_largest_eps(model, test, ThreatModel(norm, 0.1), high=0.3, precision=1e-3, method=method)
    assert np.abs(result.optimum - far).max() < 0.51e-3
    assert (result.bounds[-3:] == 0).all()  # not searched, and not counted
    assert result.mean_bounds == result.bounds[:17].mean()
    if method == "bisection":
        assert (result.bounds[:17] == 9).all()  # 0.3 / 2^9 is the first below 1e-3
    else:
        assert result.mean_bounds < 9


def test_without_correct_examples_the_mean_is_nan():
    model, test, _ = linear("Linf")
    wrong = Split.of_tensors(test.canvas, (model(test.canvas).argmax(dim=1) + 1) % 3)
    assert np.isnan(search_largest_eps(model, wrong, ThreatModel("Linf", 0.1), high=0.3, precision=1e-2).mean_bounds)


def test_the_radii_of_one_image_over_the_eps_of_the_bounds():
    model, test, far = linear("Linf")
    tried = np.array([far[5] / 2, far[5] * 0.99, far[5] * 1.01, far[5] * 1.5])
    radii = certified_radii(model, test, ThreatModel("Linf", 0.1), 5, tried)
    np.testing.assert_allclose(radii["fast-lin"], [tried[0], tried[1], 0, 0], rtol=1e-4)
    np.testing.assert_allclose(radii["pec"], [tried[0], tried[1], far[5], far[5]], rtol=1e-4)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pt"
    torch.save(fc1((1, 8, 8), 10, width=4).state_dict(), path)
    return str(path)


@pytest.mark.slow
def test_the_report_and_the_figure(weights, tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "search.svg"
    given = {"checkpoint": weights, "model": "fc1:width=4", "dataset": "digits", "precision": 1e-2, "threads": 1}
    report = EpsSearchStudy(**given, n_examples=100, figure=str(figure)).run()
    counts = dict(re.findall(r"\| (bisection|pec|newton) +\| +([\d.]+)", report))
    assert float(counts["bisection"]) == 7  # from 4 eps = 0.8
    assert 0 < float(counts["newton"]) <= 7
    assert float(counts["pec"]) <= 7
    assert f"ratio {float(counts['pec']) / 7:.3f}" in report
    assert figure.read_text().count('<g id="axes_') == 2
    assert "figure" not in EpsSearchStudy(**given, n_examples=5, figure=None).run()


@pytest.mark.slow
def test_without_a_checkpoint_a_model_is_trained_on_the_digits():
    study = EpsSearchStudy(n_examples=10, precision=0.1, figure=None, threads=1)
    assert "of 10 examples are classified correctly" in study.run()


def test_wrong_use_is_one_line(weights, tmp_path):
    given = {"checkpoint": weights, "model": "fc1:width=4", "dataset": "digits", "n_examples": 5, "figure": None}
    for wrong, words in [
        ({"image": 5}, "image is 5; it must be 0 to 4"),
        ({"precision": 0.0}, "precision"),
        ({"norm": "L1", "eps": 1.0}, "no L1 form"),
        ({"figure": str(tmp_path / "search.txt")}, "must end in"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            EpsSearchStudy(**(given | wrong)).run()
        assert "\n" not in str(error.value)
