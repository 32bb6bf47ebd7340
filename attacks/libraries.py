"""Attacks of other libraries, by their own names: torchattacks.PGD, foolbox.LinfPGD, adv_lib.fmn.

The options are the library's parameters with the library's defaults, which may not suit the threat model. The budget,
the norm and the seed come from the benchmark.
"""

import importlib
import inspect
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
from bench.core.threat import NORMS, ORDER, ThreatModel

TORCHATTACKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "MIFGSM", "UPGD", "DIFGSM"), ("Linf",)),
    **dict.fromkeys(("TIFGSM", "Jitter", "NIFGSM", "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA"), ("Linf",)),
    **dict.fromkeys(("PIFGSM", "PIFGSMPP"), ("Linf",)),
    **dict.fromkeys(("PGDL2", "PGDRSL2", "CW", "DeepFool"), ("L2",)),
    **dict.fromkeys(("APGD", "APGDT", "AutoAttack", "Square", "FAB"), ("Linf", "L2")),
    "EADL1": ("L1",),
    "EADEN": ("L1", "L2"),
}
TORCHATTACKS_MINIMUM_NORM = ("CW", "DeepFool", "EADL1", "EADEN")  # these take no eps
ADV_LIB: dict[str, tuple[str, ...]] = {
    "alma": ("L2", "L1"),
    **dict.fromkeys(("apgd", "apgd_targeted", "fab", "fmn", "pdpgd"), NORMS),
    **dict.fromkeys(("carlini_wagner_l2", "ddn", "pdgd", "sdf"), ("L2",)),
    **dict.fromkeys(("carlini_wagner_linf", "pgd_linf"), ("Linf",)),
    **dict.fromkeys(("df", "tr"), ("Linf", "L2")),
}
ADV_LIB_WITHIN_EPS = ("apgd", "apgd_targeted", "pgd_linf")  # all others are minimum-norm attacks
ADV_LIB_BUDGET = {"apgd": "eps", "apgd_targeted": "eps", "pgd_linf": "epsilon", "fab": "epsilon"}


def eps_in_unit_box(threat: ThreatModel, name: str) -> float:
    """eps for the attack `name`, which supports only one eps for all examples and the box [0, 1]; else UserError."""
    if isinstance(threat.eps, Tensor) or threat.box != (0.0, 1.0):
        raise UserError(f"{name} supports only one eps for all examples and the box [0, 1]")
    return threat.eps


@dataclass(frozen=True, kw_only=True)
class LibraryAttack(ForeignAttack):
    """Base class of the libraries' attacks. A subclass for each attack is created from its name."""

    implementation: ClassVar[Any]  # the library's class or function
    parameters: ClassVar[Mapping[str, str]]  # option -> the library's parameter
    hidden: ClassVar[Collection[str]]  # parameters that are not options, by their ASCII names

    def check_fits(self, threat: ThreatModel, shape: tuple[int, ...], classes: int) -> None:
        super().check_fits(threat, shape, classes)
        eps_in_unit_box(threat, self.name)

    def arguments(self, threat: ThreatModel, from_us: Mapping[str, Any]) -> dict[str, Any]:
        """The options by the library's names, and those of `from_us` for which the implementation has parameters."""
        eps = eps_in_unit_box(threat, self.name)
        options = {theirs: in_units(getattr(self, ours), eps) for ours, theirs in self.parameters.items()}
        accepted = inspect.signature(self.implementation).parameters
        return options | {name: from_us[_ascii(name)] for name in accepted if _ascii(name) in from_us}


class Torchattacks(LibraryAttack):
    hidden = ("model", "eps", "max_epsilon", "norm", "seed", "n_classes", "verbose")

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        ours = {"eps": threat.eps, "max_epsilon": threat.eps, "norm": threat.norm, "seed": torch.initial_seed()}
        if "n_classes" in inspect.signature(self.implementation).parameters:
            with torch.no_grad():
                ours["n_classes"] = model(x[:1]).shape[1]
        attack = self.implementation(model, **self.arguments(threat, ours))
        attack.set_device(x.device)  # the default is the device of the first weight, and a model may have none
        return attack(x, y)


class Foolbox(LibraryAttack):
    hidden = ("distance", "constraint", "tensorboard")

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        foolbox = _import("foolbox")
        distance = foolbox.distances.LpDistance(ORDER[threat.norm])
        ours = {"distance": distance, "constraint": threat.norm.lower()}
        attack = self.implementation(**self.arguments(threat, ours))
        budget = {} if self.minimum_norm else {"epsilon": threat.eps}
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return attack.run(wrapped, x, foolbox.criteria.Misclassification(y), **budget)


class AdvLib(LibraryAttack):
    hidden = ("model", "inputs", "labels", "targeted", "norm", "p", "distance", "eps", "epsilon")

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        order, name = ORDER[threat.norm], self.implementation.__name__
        ours = {"norm": order, "p": order, "distance": threat.norm.lower()}
        if name in ADV_LIB_BUDGET:
            ours[ADV_LIB_BUDGET[name]] = threat.eps
        return self.implementation(model, x, y, **self.arguments(threat, ours))


@registry.library("torchattacks")
@cache
def from_torchattacks(name: str) -> type[LibraryAttack]:
    """Attacks of torchattacks (H. Kim), as torchattacks.PGD:steps=20."""
    implementation = _find("torchattacks", _import("torchattacks"), name, TORCHATTACKS)
    minimum_norm = name in TORCHATTACKS_MINIMUM_NORM
    return _make_class(Torchattacks, f"torchattacks.{name}", implementation, TORCHATTACKS[name], minimum_norm)


@registry.library("foolbox")
@cache
def from_foolbox(name: str) -> type[LibraryAttack]:
    """Attacks of foolbox (J. Rauber and others), as foolbox.LinfPGD:steps=20."""
    attacks = _import("foolbox").attacks
    minimization, within_eps = attacks.base.MinimizationAttack, attacks.base.FixedEpsilonAttack
    classes = {key: value for key, value in vars(attacks).items() if inspect.isclass(value)}
    known = [key for key, value in classes.items() if issubclass(value, (minimization, within_eps))]
    implementation = _find("foolbox", attacks, name, known)
    parameters = inspect.signature(implementation).parameters
    if "distance" in parameters:
        norms: tuple[str, ...] = NORMS
    else:
        norms = ("Linf", "L2") if "constraint" in parameters else _foolbox_norms(implementation)
    return _make_class(Foolbox, f"foolbox.{name}", implementation, norms, issubclass(implementation, minimization))


def _foolbox_norms(implementation: Any) -> tuple[str, ...]:
    """The norm that a foolbox attack minimizes or bounds, which only an instance knows."""
    try:
        order = implementation().distance.p
    except Exception as error:  # it needs arguments that a spec cannot express, or a package that is not installed
        raise UserError(f"foolbox.{implementation.__name__} cannot be run from a spec ({one_line(error)})") from error
    norms = tuple(norm for norm in NORMS if ORDER[norm] == order)
    if not norms:
        raise UserError(f"foolbox.{implementation.__name__} is an L{order:g} attack; use one for {', '.join(NORMS)}")
    return norms


@registry.library("adv_lib")
@cache
def from_adv_lib(name: str) -> type[LibraryAttack]:
    """Attacks of adv-lib (J. Rony), as adv_lib.fmn:steps=50. Greek letters are spelt out: alpha_init."""
    implementation = _find("adv_lib", _import("adv_lib.attacks"), name, ADV_LIB)
    return _make_class(AdvLib, f"adv_lib.{name}", implementation, ADV_LIB[name], name not in ADV_LIB_WITHIN_EPS)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # importing foreign code may raise anything
        extra = module.partition(".")[0].replace("_", "-")
        raise UserError(
            f"{module} cannot be imported ({one_line(error)}); pip install 'robust-bracket[{extra}]'"
        ) from error


def _find(library: str, module: Any, name: str, known: Iterable[str]) -> Any:
    if name not in known or not hasattr(module, name):
        names = [key for key in known if hasattr(module, key)]
        raise UserError(f"{library} has no attack '{name}' under Linf, L2 or L1; it has {', '.join(names)}")
    return getattr(module, name)


def _make_class(
    base: type[LibraryAttack], name: str, implementation: Any, norms: tuple[str, ...], minimum_norm: bool
) -> type[LibraryAttack]:
    """The class of one attack. Its fields are the parameters of the implementation that a spec can set."""
    hints = get_type_hints(implementation.__init__ if inspect.isclass(implementation) else implementation)
    keyword_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(implementation).parameters.values() if p.kind in keyword_kinds]
    typed = [(p, _option_type(p, hints)) for p in parameters if _ascii(p.name) not in base.hidden]
    options = [(p, hint) for p, hint in typed if hint is not None]
    return make_dataclass(
        name,
        [(_ascii(p.name), hint, p.default) for p, hint in options],
        bases=(base,),
        namespace={
            "__doc__": f"{name}, by its library.",
            "implementation": staticmethod(implementation),
            "parameters": {_ascii(p.name): p.name for p, _ in options},
            "norms": norms,
            "minimum_norm": minimum_norm,
        },
        frozen=True,
        kw_only=True,
    )


def _option_type(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    """The type that a spec's text for a parameter is parsed as; None if text cannot express it."""
    if parameter.name not in hints:
        by_default = {int: int | float, float: Length if parameter.name == "alpha" else float, bool: bool, str: str}
        return by_default.get(type(parameter.default))
    hint = hints[parameter.name]
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = all(member in (int, float, bool, str, NoneType) or get_origin(member) is Literal for member in members)
    return hint if plain else None


def _ascii(name: str) -> str:
    """A parameter's name with Greek letters spelt out."""
    return "".join(c if c.isascii() else unicodedata.name(c).rpartition(" ")[2].lower() for c in name)
