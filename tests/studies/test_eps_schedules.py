import numpy as np
import pytest

from bench.core.errors import UserError
from bench.studies.adversarial_training.eps_schedules import EpsSchedulesStudy, compared, table_of
from bench.training.loop import Loop


@pytest.fixture
def folder(tmp_path):
    """Images of ten classes, told apart by the place of a bright square, as mnist.npz."""
    y = np.arange(60) % 10
    x = np.zeros((60, 28, 28), np.uint8)
    for image, label in zip(x, y, strict=True):
        row, column = divmod(int(label), 5)
        image[14 * row : 14 * row + 10, 5 * column : 5 * column + 5] = 255
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return str(tmp_path)


def test_each_schedule_is_trained_at_each_width(folder, tmp_path):
    figure = tmp_path / "figure.svg"
    text = EpsSchedulesStudy(
        data_dir=folder, threads=1, values=(1, 2), seeds=2, epochs=1, train=60, n_examples=20, steps=1,
        alpha="0.5eps", figure=str(figure),
    ).run()  # fmt: skip
    for name in ("constant", "cosine", "linear"):
        assert f"\n| {name} " in text
    assert "| schedule   |" in text
    assert "cosine - constant, width 2: " in text
    assert figure.stat().st_size > 1000


def test_a_study_continues_from_the_trainings_in_its_folder(folder, tmp_path, monkeypatch):
    options = {
        "data_dir": folder, "threads": 1, "values": (1,), "seeds": 2, "epochs": 1, "train": 60, "n_examples": 20,
        "steps": 1,
    }  # fmt: skip
    text = EpsSchedulesStudy(**options).run()
    study = EpsSchedulesStudy(**options, out=str(tmp_path))
    run, started = Loop.run, []

    def stopped_in_the_fourth(self, *args, **kwargs):
        started.append(self)
        if len(started) == 4:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "run", stopped_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        study.run()
    assert study.run() == text
    assert len(started) == 4 + 3  # three of six are finished, and the fourth starts again


def test_warm_up_of_the_learning_rate_is_a_training_of_figure_4_10(folder):
    study = EpsSchedulesStudy(data_dir=folder, of="4.10", epochs=4, train=60, n_examples=20)
    plan = study.planned(1e-3, {"eps_growth": "none", "lr_warm_up": "0.25"})
    config = plan.defense.config
    assert (config.optimizer, config.lr, config.lr_warm_up, config.alpha.factor) == ("adam", 1e-3, 0.25, 0.1)
    assert (plan.spec.model, plan.threat.eps) == ("lenet", 0.4)


def test_a_setting_that_does_not_train_is_named_and_a_difference_has_its_test():
    errors = {"constant": {2.0: [0.88, 0.9]}, "linear": {2.0: [0.2, 0.22]}}
    assert "| constant   | 89.0 +- 1.4 |" in table_of(errors, "width")
    (text,) = compared(errors, "width", 0.001)
    assert text.splitlines()[0] == "constant, width 2: does not train"
    assert text.splitlines()[1].startswith("linear - constant, width 2: -68.0 [")
    assert "p = " in text


def test_options_that_are_not_valid():
    with pytest.raises(UserError, match="seeds is 0"):
        EpsSchedulesStudy(seeds=0).run()
