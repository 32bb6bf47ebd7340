"""What a plugin may import, in one place: the contracts, what training shares, and `evaluate`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.attack_specs import PlannedAttack, make_attacks
from bench.core.config import TrainingConfig
from bench.core.contracts import Attack, Batch, Certificate, Certifier, Defense, Trainer, frozen, mode_of
from bench.core.errors import CheckError, UserError
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.evaluate.bracket import plan_bracket
from bench.evaluate.certified import check_certifier, make_certifiers
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import Evaluation, evaluate_split
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
    "ThreatModel",
    "Trainer",
    "TrainingConfig",
    "UserError",
    "carried_start",
    "carry",
    "evaluate",
    "frozen",
    "in_units",
    "mode_of",
    "registry",
    "start_bank",
]


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    attacks: Sequence[str] = ("pgd-10", "pgd-50", "autoattack"),
    certifiers: Sequence[str] = (),
    bracket: float | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Evaluation:
    """Attack, and certify, `model` on images x (N,C,H,W) in [0, 1] with labels y (N,) int64, all on one device.

    attacks and certifiers are specs. bracket: seconds in which attacks and certifiers decide the remaining examples.
    batch_size determines which examples share a batch and, with `seed`, all randomness. The table of the result
    (bench/core/example_table.py) has the outcome of each example. UserError for other inputs; CheckError if the
    result contradicts itself.
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point() or len(x) == 0:
        raise UserError("evaluate takes images as a tensor (N,C,H,W) of floating point, N at least 1")
    if not isinstance(y, Tensor) or y.shape != (len(x),) or y.dtype != torch.int64:
        raise UserError(f"evaluate takes {len(x)} labels as a tensor of type int64")
    if not (x.min() >= 0 and x.max() <= 1):
        raise UserError("evaluate takes images in [0, 1]; put a normalisation into the model")
    if batch_size < 1 or not isinstance(threat.eps, float):
        raise UserError("evaluate takes a batch_size of at least 1, and one eps (a float) for all examples")
    with frozen(model), torch.no_grad():
        logits = model(x[:1].float())
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise UserError("evaluate takes a model that returns logits (N,K)")
    if y.min() < 0 or y.max() >= logits.shape[1]:
        raise UserError(f"labels must be 0 to {logits.shape[1] - 1}, because the model has {logits.shape[1]} logits")
    shape, classes = tuple(x.shape[1:]), logits.shape[1]
    planned, certifiers_by_spec = make_attacks(attacks, threat), make_certifiers(certifiers)
    for attack in planned.values():
        attack.attack.check_fits(attack.threat, shape, classes)
    for certifier in certifiers_by_spec.values():
        check_certifier(certifier, model, shape, threat)
    known: list[PlannedAttack | Certifier] = [*planned.values(), *certifiers_by_spec.values()]
    plan = None if bracket is None else plan_bracket(model, shape, classes, threat, budget=bracket, known=known)
    split = Split.of_tensors(x.float(), y)
    context = EvalContext(model=model, test=split, threat=threat, batch_size=batch_size, seed=seed)
    return evaluate_split(context, planned, certifiers=certifiers_by_spec, bracket=plan)
