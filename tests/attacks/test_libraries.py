"""The attacks of other libraries: against small stand-ins always, against the libraries where they are installed."""

import inspect
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from attacks import libraries
from attacks.pgd import PGD
from bench.core import registry, seeds
from bench.core.errors import UserError
from bench.core.specs import options_of, parse_spec
from bench.core.threat import ThreatModel
from bench.testing.contracts import AttackContract, tiny_batch, tiny_model
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE = (1, 5, 5)
FACTORIES = (libraries.from_torchattacks, libraries.from_foolbox, libraries.from_adv_lib)


@pytest.fixture(autouse=True)
def fresh():
    """Classes of stand-ins and of the real libraries do not mix."""
    for factory in FACTORIES:
        factory.cache_clear()
    yield
    for factory in FACTORIES:
        factory.cache_clear()


def make(text):
    return parse_spec(text, registry.attack).make()


def run(attack, model=None, batch=None, seed=0, norm="Linf", eps=0.1):
    generator = seeds.generator(torch.device("cpu"), seed)
    return attack(model or tiny_model(), batch or tiny_batch(), ThreatModel(norm, eps), generator=generator)


def module(name, **things):
    found = ModuleType(name)
    vars(found).update(things)
    return found


class PGDLike:
    """In the manner of torchattacks: made with the model, called with images and labels."""

    arguments = None

    def __init__(self, model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True, names=None):
        PGDLike.arguments = {"eps": eps, "alpha": alpha, "steps": steps, "random_start": random_start}
        self.eps, self.model = eps, model

    def set_device(self, device):
        self.device = device

    def __call__(self, x, y):
        print("attacking")
        return (x + self.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)


class APGDLike(PGDLike):
    def __init__(self, model, norm="Linf", eps=8 / 255, steps=10, seed=0, verbose=False, n_classes=10):
        PGDLike.arguments = {"norm": norm, "eps": eps, "steps": steps, "seed": seed, "n_classes": n_classes}

    def __call__(self, x, y):
        return x


@pytest.fixture
def torchattacks(monkeypatch):
    found = module("torchattacks", PGD=PGDLike, APGD=APGDLike, CW=PGDLike, JSMA=PGDLike)
    monkeypatch.setitem(sys.modules, "torchattacks", found)


def test_options_are_the_librarys_with_its_defaults(torchattacks):
    found = options_of(parse_spec("torchattacks.PGD", registry.attack).target)
    assert {name: default for name, (_, default) in found.items()} == {
        "alpha": 2 / 255, "steps": 10, "random_start": True,
    }  # fmt: skip
    run(make("torchattacks.PGD:steps=20"))
    assert PGDLike.arguments == {"eps": 0.1, "alpha": 2 / 255, "steps": 20, "random_start": True}


@pytest.mark.parametrize(("written", "canonical", "alpha"), [
    ("torchattacks.PGD:steps=10", "torchattacks.PGD", 2 / 255),
    ("torchattacks.PGD:random_start=no:alpha=0.01", "torchattacks.PGD:alpha=0.01:random_start=false", 0.01),
    ("torchattacks.PGD:alpha=0.5eps", "torchattacks.PGD:alpha=0.5eps", 0.05),
])  # fmt: skip
def test_canonical_text_and_lengths_in_units_of_eps(torchattacks, written, canonical, alpha):
    spec = parse_spec(written, registry.attack)
    assert spec.text == canonical
    run(spec.make())
    assert PGDLike.arguments["alpha"] == pytest.approx(alpha)


def test_norm_budget_seed_and_classes_come_from_us(torchattacks):
    attack = make("torchattacks.APGD:steps=7")
    run(attack, norm="L2", eps=0.5)
    first = PGDLike.arguments["seed"]
    assert PGDLike.arguments == {"norm": "L2", "eps": 0.5, "steps": 7, "seed": first, "n_classes": 10}
    run(attack, seed=1)
    assert PGDLike.arguments["seed"] != first
    model = linear_model(SHAPE, 3)
    run(attack, model, interior_batch(model, SHAPE, 4))
    assert PGDLike.arguments["n_classes"] == 3
    assert list(options_of(type(attack))) == ["steps"]


@pytest.mark.parametrize(("text", "norm", "message"), [
    ("torchattacks.PGD:eps=0.3", "Linf", "has no option 'eps'.*alpha, steps, random_start"),
    ("torchattacks.PGD:steps=many", "Linf", "'steps' takes a whole number or a number"),
    ("torchattacks.PGD:steps=0", "Linf", "steps is 0"),
    ("torchattacks.PGD", "L2", "torchattacks.PGD has no L2 form; its norms are Linf"),
    ("torchattacks.CW", "Linf", "torchattacks.CW has no Linf form; its norms are L2"),
    ("torchattacks.PGDX", "Linf", "torchattacks has no attack 'PGDX' under Linf, L2 or L1; it has PGD, CW, APGD"),
    ("torchattacks.JSMA", "Linf", "torchattacks has no attack 'JSMA' under Linf, L2 or L1"),
    ("torchatacks.PGD", "Linf", "unknown attack 'torchatacks.PGD'"),
])  # fmt: skip
def test_wrong_use_is_a_user_error(torchattacks, text, norm, message):
    with pytest.raises(UserError, match=rf"\A.*{message}.*\Z"):
        run(make(text), norm=norm)


@pytest.mark.parametrize(("text", "extra"), [
    ("torchattacks.PGD", "torchattacks"), ("foolbox.LinfPGD", "foolbox"), ("adv_lib.fmn", "adv-lib"),
])  # fmt: skip
def test_a_library_that_is_not_installed_names_its_extra(monkeypatch, text, extra):
    for name in ("torchattacks", "foolbox", "adv_lib", "adv_lib.attacks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"\A.*cannot be imported \(.*\); pip install 'robust-bracket\[{extra}\]'\Z"):
        make(text)


def test_one_eps_for_all_and_the_unit_box(torchattacks):
    attack, batch = make("torchattacks.PGD"), tiny_batch(2)
    for threat in (ThreatModel("Linf", torch.tensor([0.1, 0.2])), ThreatModel("Linf", 0.1, box=None)):
        with pytest.raises(UserError, match="one eps for all examples and the box"):
            attack.check_fits(threat, batch.x.shape[1:], 10)
        with pytest.raises(UserError, match="one eps for all examples and the box"):
            attack(tiny_model(), batch, threat, generator=seeds.generator(torch.device("cpu"), 0))


def test_the_same_name_twice_is_the_same_attack(torchattacks):
    assert make("torchattacks.PGD:steps=3") == make("torchattacks.PGD:steps=3")


def test_libraries_print_to_standard_error(torchattacks, capsys):
    run(make("torchattacks.PGD"))
    assert capsys.readouterr().out == ""


class TestStandIn(AttackContract):
    @pytest.fixture
    def name(self, torchattacks):
        return "torchattacks.PGD"


class Distance:
    def __init__(self, p):
        self.p = p


class Within:
    """In the manner of foolbox: run(model, images, criterion, epsilon=...)."""

    def __init__(self, *, rel_stepsize: float = 0.025, abs_stepsize: float | None = None, steps: int = 50):
        self.steps = steps

    distance = Distance(math.inf)

    def run(self, model, inputs, criterion, *, epsilon):
        return (inputs + epsilon / self.steps).clamp(*model.bounds)


class Nearest:
    distance = Distance(2)

    def __init__(self, init: Within | None = None, steps: int = 100):
        self.steps = steps

    def run(self, model, inputs, criterion):
        assert (criterion.labels >= 0).all()
        return inputs + self.steps


class Sparse(Nearest):
    distance = Distance(0)


class Flexible(Nearest):
    arguments = None

    def __init__(self, *, distance=None, target: float = 0.5):
        Flexible.arguments = distance.p
        self.steps = 0


class Needy(Within):
    def __init__(self, steps: int):
        self.steps = steps


@pytest.fixture
def foolbox(monkeypatch):
    attacks = module("foolbox.attacks", LinfPGD=Within, FMN=Nearest, L0=Sparse, Any=Flexible, Needy=Needy)
    attacks.Other = Distance
    attacks.base = SimpleNamespace(MinimizationAttack=Nearest, FixedEpsilonAttack=Within)
    found = module(
        "foolbox",
        attacks=attacks,
        criteria=SimpleNamespace(Misclassification=lambda labels: SimpleNamespace(labels=labels)),
        distances=SimpleNamespace(LpDistance=Distance),
        PyTorchModel=lambda model, bounds, device: SimpleNamespace(model=model, bounds=bounds, device=device),
    )
    monkeypatch.setitem(sys.modules, "foolbox", found)


def test_foolbox_attacks_within_eps_are_given_it(foolbox):
    attack, batch = make("foolbox.LinfPGD:steps=2:abs_stepsize=none"), tiny_batch()
    assert not attack.minimum_norm
    x_adv = run(attack)
    assert torch.allclose(x_adv, (batch.x + 0.05).clamp(0, 1))


def test_foolbox_attacks_of_minimum_norm_are_not(foolbox):
    attack = make("foolbox.FMN:steps=1")
    assert attack.minimum_norm
    assert list(options_of(type(attack))) == ["steps"]  # no text gives another attack
    assert torch.equal(run(attack, norm="L2"), torch.ones_like(tiny_batch().x))


@pytest.mark.parametrize(("norm", "order"), [("Linf", math.inf), ("L2", 2), ("L1", 1)])
def test_foolbox_attacks_of_any_norm_use_ours(foolbox, norm, order):
    run(make("foolbox.Any"), norm=norm)
    assert Flexible.arguments == order


@pytest.mark.parametrize(("text", "message"), [
    ("foolbox.FMN", "foolbox.FMN has no Linf form; its norms are L2"),
    ("foolbox.L0", "foolbox.Sparse is an L0 attack; .* Linf, L2, L1"),
    ("foolbox.Needy", "foolbox.Needy cannot be run from a spec .*steps"),
    ("foolbox.Other", "foolbox has no attack 'Other' under Linf, L2 or L1; it has LinfPGD, FMN"),
])  # fmt: skip
def test_wrong_use_of_foolbox_is_a_user_error(foolbox, text, message):
    with pytest.raises(UserError, match=rf"\A.*{message}.*\Z"):
        run(make(text))


@pytest.fixture
def adv_lib(monkeypatch):
    """Functions whose parameters are Greek, as adv-lib's are."""
    arguments = {}

    def function(name, **parameters):
        def call(model, inputs, labels, **given):
            arguments.clear()
            arguments.update(given)
            return inputs

        kinds = {key: inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD) for key in ("model", "inputs")}
        kinds["labels"] = inspect.Parameter("labels", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for key, (hint, default) in parameters.items():
            kinds[key] = inspect.Parameter(
                key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=hint
            )  # fmt: skip
        call.__signature__ = inspect.Signature(list(kinds.values()))
        call.__annotations__ = {key: hint for key, (hint, _) in parameters.items()}
        call.__name__ = name
        return call

    empty = inspect.Parameter.empty
    attacks = module(
        "adv_lib.attacks",
        fmn=function(
            "fmn",
            norm=(float, empty),
            targeted=(bool, False),
            steps=(int, 10),
            α_init=(float, 1.0),
            γ_init=(float, 0.05),
            starting_points=(torch.Tensor | None, None),
        ),
        pgd_linf=function("pgd_linf", ε=(float | torch.Tensor, empty), restarts=(int | None, None)),
        tr=function("tr", p=(float, 2), eps=(float, 0.001)),
    )
    monkeypatch.setitem(sys.modules, "adv_lib", module("adv_lib", attacks=attacks))
    monkeypatch.setitem(sys.modules, "adv_lib.attacks", attacks)
    return arguments


@pytest.mark.parametrize(("text", "norm", "given", "nearest"), [
    ("adv_lib.fmn:alpha_init=2", "L2", {"norm": 2.0, "steps": 10, "\u03b1_init": 2.0, "\u03b3_init": 0.05}, True),
    ("adv_lib.fmn:steps=5", "Linf", {"norm": math.inf, "steps": 5, "\u03b1_init": 1.0, "\u03b3_init": 0.05}, True),
    ("adv_lib.pgd_linf:restarts=3", "Linf", {"\u03b5": 0.1, "restarts": 3}, False),
    ("adv_lib.pgd_linf", "Linf", {"\u03b5": 0.1, "restarts": None}, False),
    ("adv_lib.tr", "Linf", {"p": math.inf}, True),  # its eps is no budget
])  # fmt: skip
def test_adv_lib_is_given_its_greek_parameters_and_our_norm(adv_lib, text, norm, given, nearest):
    attack = make(text)
    run(attack, norm=norm)
    assert adv_lib == given
    assert attack.minimum_norm == nearest
    assert parse_spec(text, registry.attack).text == text


REAL = [
    ("torchattacks", "torchattacks.PGD:steps=5"),
    ("torchattacks", "torchattacks.PGDL2:steps=5"),
    ("torchattacks", "torchattacks.CW:steps=5"),
    ("torchattacks", "torchattacks.AutoAttack"),
    ("foolbox", "foolbox.LinfPGD:steps=5"),
    ("foolbox", "foolbox.L1PGD:steps=5"),
    ("foolbox", "foolbox.L2FMNAttack:steps=5"),
    ("adv_lib", "adv_lib.pgd_linf:steps=5"),
    ("adv_lib", "adv_lib.fmn:steps=5"),
]


@pytest.mark.filterwarnings("ignore")  # theirs are not ours to mend
class TestReal(AttackContract):
    @pytest.fixture(params=REAL, ids=lambda pair: pair[1])
    def name(self, request):
        library, text = request.param
        pytest.importorskip(library)
        return text


@pytest.mark.parametrize("text", ["torchattacks.PGD:alpha=0.25eps", "foolbox.LinfPGD", "adv_lib.pgd_linf"])
def test_real_pgd_breaks_the_examples_of_negative_margin(text):
    pytest.importorskip(text.partition(".")[0])
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 40), ThreatModel("Linf", 0.1)
    exact = exact_margin(model, batch, threat)
    assert 5 <= (exact < 0).sum() <= 35
    clear = exact.abs() > 0.05
    theirs = model(run(make(f"{text}:steps=100"), model, batch)).argmax(dim=1) != batch.y
    ours = model(run(PGD(steps=50), threat, model, batch)).argmax(dim=1) != batch.y
    assert torch.equal(theirs[clear], (exact < 0)[clear])
    assert torch.equal(ours[clear], theirs[clear])


@pytest.mark.filterwarnings("ignore")
def test_real_torchattacks_works_without_weights():
    pytest.importorskip("torchattacks")
    model = nn.Sequential(nn.Flatten(), nn.Softmax(dim=1))
    assert run(make("torchattacks.PGD"), model).shape == tiny_batch().x.shape
