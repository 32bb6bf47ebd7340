"""Attacks of other libraries, by their own names: torchattacks.PGD, foolbox.LinfPGD, adv_lib.fmn.

An attack's options are its library's parameters with its library's defaults, whatever these are worth under the threat
model at hand; the budget, the norm and the seed come from us. Our own attacks stop at a broken example, these need not.
"""

from __future__ import annotations

import importlib
import inspect
import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, make_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.errors import UserError
from bench.core.foreign_attacks import ForeignAttack
from bench.core.registry import one_line
from bench.core.specs import Length, in_units
from bench.core.threat import NORMS

ORDER = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}

TORCHATTACKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "MIFGSM", "UPGD", "DIFGSM"), ("Linf",)),
    **dict.fromkeys(("TIFGSM", "Jitter", "NIFGSM", "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA"), ("Linf",)),
    **dict.fromkeys(("PIFGSM", "PIFGSMPP"), ("Linf",)),
    **dict.fromkeys(("PGDL2", "PGDRSL2", "CW", "DeepFool"), ("L2",)),
    **dict.fromkeys(("APGD", "APGDT", "AutoAttack", "Square", "FAB"), ("Linf", "L2")),
    "EADL1": ("L1",),
    "EADEN": ("L1", "L2"),
}
TORCHATTACKS_NEAREST = ("CW", "DeepFool", "EADL1", "EADEN")  # minimum-norm attacks, which take no eps
ADV_LIB: dict[str, tuple[str, ...]] = {
    "alma": ("L2", "L1"),
    "apgd": NORMS,
    "apgd_targeted": NORMS,
    "carlini_wagner_l2": ("L2",),
    "carlini_wagner_linf": ("Linf",),
    "ddn": ("L2",),
    "df": ("Linf", "L2"),
    "fab": NORMS,
    "fmn": NORMS,
    "pdgd": ("L2",),
    "pdpgd": NORMS,
    "pgd_linf": ("Linf",),
    "sdf": ("L2",),
    "tr": ("Linf", "L2"),
}
ADV_LIB_WITHIN_EPS = ("apgd", "apgd_targeted", "pgd_linf")  # all others look for the nearest adversarial point
ADV_LIB_BUDGET = {"apgd": "eps", "apgd_targeted": "eps", "pgd_linf": "epsilon", "fab": "epsilon"}


@dataclass(frozen=True, kw_only=True)
class LibraryAttack(ForeignAttack):
    """What the attacks of the libraries share. The class of each is made when it is asked for, by its name."""

    theirs: ClassVar[Any]
    parameters: ClassVar[Mapping[str, str]]  # our option: their parameter

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.threat.eps, Tensor) or self.threat.box != (0.0, 1.0):
            raise UserError(f"{self.name} takes one eps for all examples and the box [0, 1]")

    def options(self) -> dict[str, Any]:
        """What the user chose, by their names."""
        return {theirs: in_units(getattr(self, ours), self.threat.eps) for ours, theirs in self.parameters.items()}

    def taken(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Of what we could give them, by the ASCII form of their names, what they take."""
        return {p: ours[_ascii(p)] for p in inspect.signature(self.theirs).parameters if _ascii(p) in ours}


class Torchattacks(LibraryAttack):
    def run(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        eps, norm = self.threat.eps, self.threat.norm
        ours = {"eps": eps, "max_epsilon": eps, "norm": norm, "seed": torch.initial_seed()}
        if "n_classes" in inspect.signature(self.theirs).parameters:
            with torch.no_grad():
                ours["n_classes"] = model(x[:1]).shape[1]
        attack = self.theirs(model, **self.options(), **self.taken(ours))
        attack.set_device(x.device)  # it takes the first weight's, and a model may have none
        return attack(x, y)


class Foolbox(LibraryAttack):
    def run(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        foolbox, norm = _import("foolbox"), self.threat.norm
        ours = {"distance": foolbox.distances.LpDistance(ORDER[norm]), "constraint": norm.lower()}
        attack = self.theirs(**self.options(), **self.taken(ours))
        budget = {} if self.minimum_norm else {"epsilon": self.threat.eps}
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return attack.run(wrapped, x, foolbox.criteria.Misclassification(y), **budget)


class AdvLib(LibraryAttack):
    def run(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        order = ORDER[self.threat.norm]
        ours = {"norm": order, "p": order, "distance": self.threat.norm.lower()}
        if self.theirs.__name__ in ADV_LIB_BUDGET:
            ours[ADV_LIB_BUDGET[self.theirs.__name__]] = self.threat.eps
        return self.theirs(model, x, y, **self.options(), **self.taken(ours))


@registry.library("torchattacks")
@cache
def from_torchattacks(name: str) -> type[LibraryAttack]:
    """Attacks of torchattacks (H. Kim), as torchattacks.PGD:steps=20."""
    theirs = _find("torchattacks", _import("torchattacks"), name, TORCHATTACKS)
    nearest = name in TORCHATTACKS_NEAREST
    hidden = ("model", "eps", "max_epsilon", "norm", "seed", "n_classes", "verbose")
    return _made(Torchattacks, f"torchattacks.{name}", theirs, TORCHATTACKS[name], nearest, hidden)


@registry.library("foolbox")
@cache
def from_foolbox(name: str) -> type[LibraryAttack]:
    """Attacks of foolbox (J. Rauber and others), as foolbox.LinfPGD:steps=20."""
    attacks = _import("foolbox").attacks
    nearest, within_eps = attacks.base.MinimizationAttack, attacks.base.FixedEpsilonAttack
    known = {key: each for key, each in vars(attacks).items() if inspect.isclass(each)}
    known = {key: each for key, each in known.items() if issubclass(each, (nearest, within_eps))}
    theirs = _find("foolbox", attacks, name, known)
    takes = inspect.signature(theirs).parameters
    if "distance" in takes:
        norms: tuple[str, ...] = NORMS
    elif "constraint" in takes:
        norms = ("Linf", "L2")
    else:
        norms = _norms_of(theirs)
    hidden = ("distance", "constraint", "tensorboard")
    return _made(Foolbox, f"foolbox.{name}", theirs, norms, issubclass(theirs, nearest), hidden)


def _norms_of(theirs: Any) -> tuple[str, ...]:
    """What one of foolbox's attacks minimises or stays within, which it says once it is made."""
    try:
        order = theirs().distance.p
    except Exception as error:  # it needs more than a spec can give, or a package that is not there
        raise UserError(f"foolbox.{theirs.__name__} cannot be run from a spec ({one_line(error)})") from error
    norms = tuple(norm for norm in NORMS if ORDER[norm] == order)
    if not norms:
        raise UserError(f"foolbox.{theirs.__name__} is an L{order:g} attack; there are {', '.join(NORMS)}")
    return norms


@registry.library("adv_lib")
@cache
def from_adv_lib(name: str) -> type[LibraryAttack]:
    """Attacks of adv-lib (J. Rony), as adv_lib.fmn:steps=50. Greek letters are spelt out: alpha_init."""
    theirs = _find("adv_lib", _import("adv_lib.attacks"), name, ADV_LIB)
    nearest = name not in ADV_LIB_WITHIN_EPS
    hidden = ("model", "inputs", "labels", "targeted", "norm", "p", "distance", "eps", "epsilon")
    return _made(AdvLib, f"adv_lib.{name}", theirs, ADV_LIB[name], nearest, hidden)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # other people's import may raise anything
        extra = module.partition(".")[0].replace("_", "-")
        raise UserError(
            f"{module} cannot be imported ({one_line(error)}); pip install 'robust-bracket[{extra}]'"
        ) from error


def _find(library: str, module: Any, name: str, known: Iterable[str]) -> Any:
    if name not in known or not hasattr(module, name):
        names = [each for each in known if hasattr(module, each)]
        raise UserError(f"{library} has no attack '{name}' under Linf, L2 or L1; it has {', '.join(names)}")
    return getattr(module, name)


def _made(
    base: type[LibraryAttack], name: str, theirs: Any, norms: tuple[str, ...], nearest: bool, hidden: Collection[str]
) -> type[LibraryAttack]:
    """The class of one attack, whose fields are those of their parameters that a spec can set."""
    hints = get_type_hints(theirs.__init__ if inspect.isclass(theirs) else theirs)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = [p for p in inspect.signature(theirs).parameters.values() if p.kind in named]
    shown = {p.name: p for p in found if _ascii(p.name) not in hidden}
    types = {key: _type(p, hints) for key, p in shown.items()}
    return make_dataclass(
        name,
        [(_ascii(key), hint, shown[key].default) for key, hint in types.items() if hint is not None],
        bases=(base,),
        namespace={
            "__doc__": f"{name}, by its library.",
            "theirs": staticmethod(theirs),
            "parameters": {_ascii(key): key for key, hint in types.items() if hint is not None},
            "norms": norms,
            "minimum_norm": nearest,
        },
        frozen=True,
        kw_only=True,
    )


def _type(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    """What a spec's text for a parameter is read as; None where text cannot give it."""
    if parameter.name not in hints:
        by_default = {int: int | float, float: Length if parameter.name == "alpha" else float, bool: bool, str: str}
        return by_default.get(type(parameter.default))
    hint = hints[parameter.name]
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = all(member in (int, float, bool, str, NoneType) or get_origin(member) is Literal for member in members)
    return hint if plain else None


def _ascii(name: str) -> str:
    """Their name with Greek letters spelt out."""
    return "".join(c if c.isascii() else unicodedata.name(c).rpartition(" ")[2].lower() for c in name)
