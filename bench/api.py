"""What users and plugins import, in one place: `evaluate`, the contracts, and what attacks and trainings share."""

from collections.abc import Sequence

from torch import Tensor, nn

from attacks.losses import margin
from attacks.pgd import ascend
from bench.core import registry
from bench.core.attack_specs import make_attacks
from bench.core.config import TrainingConfig
from bench.core.contracts import Attack, Batch, Certificate, Certifier, Defense, Trainer, frozen, mode_of
from bench.core.errors import CheckError, UserError
from bench.core.failures import failures_of
from bench.core.passes import on_rows
from bench.core.specs import Length, OfEps, in_units
from bench.core.staged_attack import Stage, StagedAttack
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.evaluate.bracket import plan_bracket
from bench.evaluate.certified import check_certifier, make_certifiers
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import Evaluation, evaluate_split
from bench.evaluate.inputs import checked_images, checked_model, evaluation_state
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
    "margin",
    "mode_of",
    "on_rows",
    "registry",
    "start_bank",
]


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
            attack.threat.check_eps(shape)
            attack.attack.check_fits(attack.threat, shape, classes)
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
