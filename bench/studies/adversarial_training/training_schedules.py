"""`bench study training-schedules`: learning rate and eps of a training by epoch (thesis, figures 4.12, 4.13)."""

from dataclasses import dataclass

import numpy as np

from bench.core import registry
from bench.core.config import get_suite, make_config
from bench.core.errors import UserError
from bench.core.spec_text import split_spec
from bench.studies.figure_style import check_figure, new_figure
from bench.studies.study import Study
from bench.training.schedules import eps_at, learning_rate
from leaderboard.render import render

POINTS = 400  # of a curve
PAS = ("pas:periods=", "pas", "pas:eps_growth=linear:periods=", "pas:eps_growth=linear")


@registry.study("training-schedules")
@dataclass(frozen=True, kw_only=True)
class TrainingSchedulesStudy(Study):
    """The learning rate and the eps of trainings over their epochs, as a table and as curves.

    Thesis, section 4.2.4: figure 4.12 has the learning rates without and with periods, figure 4.13 the cosine and the
    linear eps of Eq. 4.29. The defaults are those of CIFAR-10; MNIST's are
    `pas:periods=:epochs=100:schedule=constant:optimizer=adam:lr=1e-4:eps_max=1.5eps` and `--set eps=0.4`. The thesis
    does not print how the learning rate falls within a period; this study uses the defense's schedule.
    """

    defenses: tuple[str, ...] = PAS  # the trainings, as specs of defenses
    suite: str | None = None  # suite with the settings of the trainings; none: the defenses' own
    eps: float = 8 / 255  # eps of the threat model, if there is no suite
    rows: int = 8  # rows of the table: epochs at equal distances
    figure: str | None = None  # file of the figure; none: no figure

    def run(self) -> str:
        if self.rows < 1 or self.eps <= 0:
            raise UserError(f"rows is {self.rows} and eps {self.eps:g}; rows must be at least 1 and eps positive")
        if self.figure is not None:
            check_figure(self.figure)
        suite = None if self.suite is None else get_suite(self.suite)
        eps = self.eps if suite is None else suite.eps
        curves, rows = {}, []
        for text in self.defenses:
            name, settings = split_spec(text)
            layers = [] if suite is None else [suite.training, suite.defenses.get(name, {})]
            special = [{key: value for key, value in layer.items() if key != "model"} for layer in layers]
            config = make_config(registry.defense.get(name).config_class, name, *special, settings)
            progress = np.linspace(0, 1, POINTS, endpoint=False)
            lr = [learning_rate(config, share) for share in progress]
            radius = [eps_at(config, eps, share) for share in progress]
            curves[text] = (progress * config.epochs, lr, radius)
            for share in np.arange(self.rows) / self.rows:
                at = (learning_rate(config, share), eps_at(config, eps, share) / eps)
                rows.append([text, f"{share * config.epochs:g}", *(f"{value:.3g}" for value in at)])
        table = render(["training", "epoch", "learning rate", "eps, of its target"], rows, align="lrrr")
        if self.figure is None:
            return table
        with new_figure(self.figure, 11, 4.5) as canvas:
            left, right = canvas.subplots(1, 2)
            for text, (epochs, lr, radius) in curves.items():
                left.plot(epochs, lr, label=text)
                right.plot(epochs, radius, label=text)
            left.set(xlabel="epoch", ylabel="learning rate", title="thesis, figure 4.12")
            right.set(xlabel="epoch", ylabel="eps", title="thesis, figure 4.13")
            canvas.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return f"{table}\n\nfigure: {self.figure}"
