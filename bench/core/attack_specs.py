"""Attacks from specs, each with the threat model that it runs under."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from bench.core import registry
from bench.core.contracts import Attack
from bench.core.errors import UserError
from bench.core.foreign_attacks import CallableAttack
from bench.core.spec_text import list_of_specs
from bench.core.specs import options_of, parse_spec
from bench.core.threat import Norm, ThreatModel


@dataclass(frozen=True)
class PlannedAttack:
    """An attack and the threat model that it runs under."""

    attack: Attack
    threat: ThreatModel

    def check_fits(self, shape: tuple[int, ...], classes: int) -> None:
        """UserError if eps is too large for images of `shape` (C,H,W), or the attack does not support them."""
        self.threat.check_eps(shape)
        self.attack.check_fits(self.threat, shape, classes)


def make_attacks(specs: str | Sequence[str], threat: ThreatModel) -> dict[str, PlannedAttack]:
    """Build attacks from specs, or from one comma-separated text; the keys are canonical specs.

    Each spec also takes the options `norm` and `eps`, whose defaults are those of `threat`.
    """
    planned: dict[str, PlannedAttack] = {}
    for text in list_of_specs(specs):
        spec = parse_spec(text, registry.attack, common={"norm": (Norm, threat.norm), "eps": (float, threat.eps)})
        if spec.options.get("norm", threat.norm) != threat.norm:  # its eps is shown even if it is the same number
            spec = parse_spec(text, registry.attack, common={"norm": (Norm, threat.norm), "eps": (float, None)})
        if reserved := {"norm", "eps"} & set(options_of(spec.target)):
            raise UserError(f"attack '{text}' must not have an option {min(reserved)}; ask for `threat` instead")
        norm, eps = (spec.options.pop(option, None) for option in ("norm", "eps"))
        if norm not in (None, threat.norm) and eps is None:
            raise UserError(f"attack '{text}' is under another norm; give its eps too, as in {text}:eps=0.5")
        is_function = inspect.isfunction(spec.target)
        attack = CallableAttack(function=spec.target, options=spec.arguments) if is_function else spec.make()
        plan = PlannedAttack(attack, ThreatModel(norm or threat.norm, threat.eps if eps is None else eps, threat.box))
        if plan in planned.values():
            raise UserError(f"attack '{text}' is given twice; keep one")
        planned[spec.text] = plan
    return planned
