import pytest

from bench.core.errors import UserError
from bench.studies.adversarial_training.training_schedules import TrainingSchedulesStudy


def cells(text, training):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [(float(epoch), float(lr), float(eps)) for name, epoch, lr, eps in rows if name == training]


def test_the_periods_of_the_thesis(tmp_path):
    figure = tmp_path / "schedules.svg"
    text = TrainingSchedulesStudy(defenses=("pas:eps_growth=linear",), figure=str(figure)).run()
    found = cells(text, "pas:eps_growth=linear")
    # 0:100:150:200 epochs, eps up to twice its target: it is reached in the middle of each period
    assert [(epoch, round(eps, 3)) for epoch, _, eps in found] == [
        (0, 0), (25, 0.5), (50, 1), (75, 1), (100, 0), (125, 1), (150, 0), (175, 1),
    ]  # fmt: skip
    assert [lr for _, lr, _ in found][4] == 0.1  # begins anew
    assert figure.stat().st_size > 1000


def test_a_suite_gives_its_settings():
    text = TrainingSchedulesStudy(defenses=("atas",), suite="digits", rows=6).run()
    assert cells(text, "atas") == [(5 * n, 0.1, 1) for n in range(5)] + [(25, 0.01, 1)]


@pytest.mark.parametrize(("options", "said"), [({"rows": 0}, "at least 1"), ({"defenses": ("pass",)}, "pas")])
def test_options_that_are_not_valid(options, said):
    with pytest.raises(UserError, match=said):
        TrainingSchedulesStudy(**options).run()
