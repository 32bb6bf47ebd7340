"""What users and plugins import, in one place.

`train`, `evaluate`, `load_runs`, `leaderboard`, the contracts, and what attacks and trainings share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.losses import margin
from bench.core import registry
from bench.core.attack_specs import make_attacks
from bench.core.config import TrainingConfig
from bench.core.contracts import Attack, Batch, Certificate, Certifier, Defense, Trainer, frozen, mode_of
from bench.core.errors import CheckError, UserError
from bench.core.failures import failures_of
from bench.core.passes import on_rows
from bench.core.specs import Length, OfEps, in_units, show_value
from bench.core.staged_attack import Stage, StagedAttack
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.evaluate.bracket import plan_bracket
from bench.evaluate.certified import check_certifier, make_certifiers
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import Evaluation, evaluate_split
from bench.evaluate.inputs import checked_images, checked_model, evaluation_state
from bench.runs.dataframes import leaderboard, load_runs
from bench.training.perturbation_bank import carried_start, carry, start_bank

__all__ = [
    "Arrays",
    "Attack",
    "Batch",
    "Certificate",
    "Certifier",
    "CheckError",
    "Defense",
    "Evaluation",
    "Length",
    "OfEps",
    "Split",
    "Stage",
    "StagedAttack",
    "ThreatModel",
    "Trainer",
    "TrainingConfig",
    "UserError",
    "ascend",
    "carried_start",
    "carry",
    "evaluate",
    "frozen",
    "in_units",
    "leaderboard",
    "load_runs",
    "margin",
    "mode_of",
    "on_rows",
    "registry",
    "start_bank",
    "train",
]


def train(
    defense: str,
    *,
    suite: str | None = None,
    dataset: str | None = None,
    model: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
    plugins: Sequence[str | Path] = (),
    data_dir: str | Path | None = None,
    device: str = "auto",
    out: str | Path = "runs",
) -> nn.Module:
    """Train a defense as `bench run --defense` does, and return the network, which takes images (N,C,H,W) in [0, 1].

    defense, suite, dataset, model, norm, eps, plugins and data_dir are those of the command; settings are its `--set`,
    as in {"epochs": 5, "milestones": (0.5, 0.75)}. The training lies in OUT/trainings: the same call again, or `bench
    run`, uses it. Progress is shown on standard error. UserError for what the command refuses.
    """
    from bench.runs.plan import make_plan  # here: plugins import this module, and need no plans
    from bench.runs.request import Request, split_defense
    from bench.runs.run import train_seed

    if seed < 0:
        raise UserError(f"seed takes an integer of at least 0, not {seed}")
    given = {key: show_value(tuple(v) if isinstance(v, list) else v) for key, v in (settings or {}).items()}
    name, overrides = split_defense(defense, given)
    request = Request(
        defense=name, suite=suite, dataset=dataset, model=model, norm=norm, eps=None if eps is None else [eps],
        attacks=(), overrides=overrides, device=device,
        plugins=[Path(path) for path in plugins], data_dir=None if data_dir is None else Path(data_dir), out=Path(out),
    )  # fmt: skip
    return train_seed(make_plan(request), seed).eval()


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    attacks: str | Sequence[str] = ("pgd-10", "pgd-50", "autoattack"),
    certifiers: str | Sequence[str] = (),
    bracket: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Evaluation:
    """Attack, and certify, `model` on images x (N,C,H,W) in [0, 1] with labels y (N,) int64, all on one device.

    A model in train mode is evaluated in eval mode. Modules in train mode inside of a module in eval mode (Monte Carlo
    dropout) stay so, with a warning. The model is left as it was.

    attacks and certifiers are specs, or one text with commas between them. bracket: attacks and certifiers decide the
    remaining examples, with at most this many sub-problems for each example in each certifier that searches; 1000 is
    usual. time_limit: seconds after which the bracket ends; what that cuts depends on the machine, and the result says
    that it is `truncated`. batch_size determines which examples share a batch and, with `seed`, all randomness.
    progress: show bars, and warnings of attacks, on standard error. The table of the result
    (bench/core/example_table.py) has the outcome of each example; printed, the result is a summary. UserError for other
    inputs, and for whatever the model or an attack raises; CheckError if the result contradicts itself.
    """
    classifier = checked_model(model)
    with evaluation_state(classifier), failures_of("evaluate"):
        x, y, threat, classes = checked_images(classifier, x, y, threat, batch_size)
        shape = tuple(x.shape[1:])
        planned, certifiers_by_spec = make_attacks(attacks, threat), make_certifiers(certifiers)
        for attack in planned.values():
            attack.check_fits(shape, classes)
        for certifier in certifiers_by_spec.values():
            check_certifier(certifier, classifier, shape, threat)
        if time_limit is not None and bracket is None:
            raise UserError("time_limit is for a bracket; give bracket too, such as bracket=1000")
        plan = None if bracket is None else plan_bracket(
            classifier, shape, classes, threat, budget=bracket, time_limit=time_limit,
            known=[*planned.values(), *certifiers_by_spec.values()],
        )  # fmt: skip
        split = Split.of_tensors(x, y)
        context = EvalContext(
            model=classifier, test=split, threat=threat, batch_size=batch_size, seed=seed, show_progress=progress
        )
        return evaluate_split(context, planned, certifiers=certifiers_by_spec, bracket=plan)
