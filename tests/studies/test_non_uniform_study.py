import pytest
import torch

from bench.core.errors import UserError
from bench.datasets.split import Split
from bench.studies.certified_training import non_uniform
from bench.studies.certified_training.non_uniform import Boxes, NonUniformStudy, boxes_around, paper_row

PRINTED = (99.2, 0.0295, 0.0349, 0.9548, 0.2304)


@pytest.mark.slow
def test_both_models_are_trained_and_compared_with_the_thesis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(non_uniform, "paper_row", lambda _dataset, _model, kind: PRINTED if kind == "robust" else None)
    study = NonUniformStudy(dataset="digits", hidden=20, epochs=10, n_examples=4, figure="boxes.svg")
    text = study.run()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("|")]
    rows = {name: cells for name, *cells in lines[2:] if name}
    for kind in ("vanilla", "robust"):
        accuracy, uniform, average, ratio, mean, least = map(float, rows[f"{kind}, ours"])
        assert accuracy > 80
        assert 0 < uniform < average
        assert ratio == pytest.approx(average / uniform, abs=0.02)
        assert -1 <= least <= mean <= 1
    assert rows["robust, thesis"] == ["99.2", "0.0295", "0.0349", "1.183", "0.9548", "0.2304"]
    assert "vanilla, thesis" not in rows
    difference = next(cells for name, *cells in lines[2:] if not name)
    assert float(difference[0]) == pytest.approx(accuracy - 99.2, abs=0.11)
    assert (tmp_path / "boxes.svg").stat().st_size > 10_000
    assert study.run() == text  # the trained models are read from their folders


def test_the_average_is_geometric_and_cosines_are_of_pairs():
    eps = torch.tensor([[1.0, 4.0], [2.0, 8.0], [4.0, 1.0]]).reshape(3, 1, 1, 2)
    boxes = Boxes(1.0, eps, torch.zeros(3, dtype=torch.int64), eps, torch.ones(3))
    assert boxes.average == pytest.approx((2 + 4 + 2) / 3)
    assert sorted(boxes.cosines().tolist()) == pytest.approx([8 / 17, 8 / 17, 1.0])


def test_the_printed_figures_are_found():
    assert paper_row("mnist", "mlp:hidden=100,100,100", "robust") == (98.1, 0.0692, 0.1678, 0.9957, 0.9155)
    assert paper_row("svhn", "mlp:hidden=1024,1024,1024", "vanilla") == (84.3, 0.0022, 0.0072, 0.9836, 0.7129)
    assert paper_row("mnist", "mlp:hidden=50,50,50", "robust") is None


@pytest.mark.parametrize(("settings", "fact"), [
    ({"n_examples": 1}, "two images"),
    ({"n_examples": 361}, "360 test images"),
    ({"seed": -1}, "at least 0"),
    ({"pilot": 2}, "less than n_examples"),
    ({"epochs": 0}, "at least 1"),
    ({"hidden": 0}, "hidden"),
    ({"threads": 0}, "1 to 1024"),
    ({"figure": "boxes.txt"}, ".png"),
])  # fmt: skip
def test_wrong_settings_are_refused_before_the_first_training(settings, fact, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(non_uniform, "run_seed", None)
    with pytest.raises(UserError, match=fact):
        NonUniformStudy(**{"dataset": "digits", "hidden": 4, "epochs": 1, "n_examples": 2} | settings).run()


def test_the_others_start_from_the_mean_direction_of_the_pilots(monkeypatch):
    eps, seen = torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 5.0], [1.0, 1.0]]).view(4, 1, 1, 2), []

    def recorded(self, model, x, y, direction):
        seen.append((len(x), direction))
        return eps[y], y.float() - 0.5  # the first has no box

    monkeypatch.setattr(non_uniform.NonUniform, "boxes", recorded)
    test = Split.of_tensors(torch.rand(4, 1, 1, 2), torch.arange(4))
    assert boxes_around(None, test, 2, "boxes")[1].tolist() == [1, 2, 3]
    (pilots, none), (others, direction) = seen
    assert (pilots, none, others) == (2, None, 2)
    assert direction.tolist() == [[[0.0, 1.0]]]
    seen.clear()
    boxes_around(None, test, 0, "boxes")
    assert seen == [(4, None)]


def boxes_of(n, label=0):
    """n images of one class with a box each."""
    eps = torch.rand(n, 1, 2, 2) + 0.1
    return Boxes(0.5, torch.rand(n, 1, 2, 2), torch.full((n,), label), eps, torch.full((n,), 0.1))


@pytest.mark.parametrize(("vanilla", "robust", "panels"), [
    (boxes_of(3, label=1), boxes_of(2, label=1), 1 + 3),  # curves; one image of class 1, a map of each model
    (boxes_of(3, label=1), boxes_of(2, label=7), 1 + 2 + 2),
    (boxes_of(3, label=4), boxes_of(1, label=5), 1 + 3),  # neither class: any image
    (boxes_of(3, label=1), boxes_of(0), 1 + 2),
    (boxes_of(0), boxes_of(0), 0),
])  # fmt: skip
def test_models_with_few_boxes_or_none_have_a_report_and_no_empty_panel(vanilla, robust, panels, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    measured = {"vanilla": vanilla, "robust": robust}
    monkeypatch.setattr(non_uniform, "measure_boxes", lambda *given: measured[given[-1]])
    figure = tmp_path / "boxes.svg"
    settings = {"dataset": "digits", "hidden": 4, "epochs": 1, "n_examples": 3, "figure": str(figure)}
    text = NonUniformStudy(**settings).run()
    assert "nan" not in text
    drawn = figure.read_text().count('<g id="axes_') if figure.exists() else 0
    assert drawn == panels
    assert ("so there is no figure" in text) == (panels == 0)


@pytest.mark.parametrize(("dataset", "pair"), [("digits:classes=1+7", (0, 1)), ("digits", (1, 7))])
def test_the_maps_of_two_classes_are_drawn(dataset, pair, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(non_uniform, "measure_boxes", lambda *_given: boxes_of(2))
    monkeypatch.setattr(non_uniform, "draw", lambda _canvas, _boxes, pair: drawn.append(pair))
    NonUniformStudy(dataset=dataset, hidden=4, epochs=1, n_examples=2, figure=str(tmp_path / "boxes.svg")).run()
    assert drawn == [pair]
