import random

import numpy as np
import pytest
import torch

from attacks.pgd import PGD
from bench.core import registry, seeds
from bench.core.attack_specs import PlannedAttack, make_attacks
from bench.core.errors import UserError
from bench.core.foreign_attacks import CallableAttack
from bench.core.threat import ThreatModel
from bench.testing.contracts import fingerprint, same, tiny_batch, tiny_model

THREAT = ThreatModel("Linf", 0.1)


def attack(function, **options):
    return CallableAttack(function=function, options=options)


def call(method, batch, model=None, seed=0, threat=THREAT):
    return method(model or tiny_model(), batch, threat, generator=seeds.generator(torch.device("cpu"), seed))


def run(function, seed=0, threat=THREAT, **options):
    return call(attack(function, **options), tiny_batch(), seed=seed, threat=threat)


def test_a_function_is_an_attack():
    def darken(model, x, y):
        return 0.95 * x

    assert torch.equal(run(darken), 0.95 * tiny_batch().x)


def test_a_registered_function_is_found_with_its_options(monkeypatch):
    monkeypatch.setattr(registry.attack, "_plugins", {})

    @registry.attack("darken")
    def darken(model, x, y, *, by: float = 0.05, from_: int = 0):
        """All pixels are made darker."""
        assert from_ == 3
        return (1 - by) * x

    [(text, planned)] = make_attacks(["darken:from=3:by=0.01"], THREAT).items()
    assert text == "darken:by=0.01:from=3"
    assert planned.threat == THREAT
    batch = tiny_batch()
    assert torch.equal(call(planned.attack, batch), 0.99 * batch.x)


def test_a_spec_may_set_its_own_threat_model():
    planned = make_attacks(["pgd:steps=3", "pgd:steps=3:eps=0.5", "pgd:steps=3:norm=L2:eps=2"], THREAT)
    threats = [THREAT, ThreatModel("Linf", 0.5), ThreatModel("L2", 2.0)]
    assert list(planned.values()) == [PlannedAttack(PGD(steps=3), threat) for threat in threats]


@pytest.mark.parametrize(
    ("specs", "message"),
    [(["pgd-10", "pgd"], "'pgd' is given twice"), (["pgd:norm=L2"], "another norm.*pgd:norm=L2:eps=0.5")],
)
def test_specs_that_cannot_be_planned(specs, message):
    with pytest.raises(UserError, match=rf"\A.*{message}.*\Z"):
        make_attacks(specs, THREAT)


def test_an_attack_must_not_name_its_options_like_those_that_all_have(monkeypatch):
    monkeypatch.setattr(registry.attack, "_plugins", {})

    @registry.attack("mine")
    def mine(model, x, y, *, eps: float = 0.1):
        return x

    with pytest.raises(UserError, match=r"\Aattack 'mine' must not have an option eps.*\Z"):
        make_attacks(["mine"], THREAT)


def test_the_same_function_with_the_same_options_is_the_same_attack():
    def mine(model, x, y, *, by: float = 1.0):
        return x

    assert attack(mine, by=2.0) == attack(mine, by=2.0)
    assert attack(mine, by=2.0) != attack(mine, by=3.0)


def test_threat_and_generator_are_given_to_those_who_ask():
    def uniform(model, x, y, *, threat, generator):
        return threat.random_start(x, generator)

    batch = tiny_batch()
    assert torch.equal(run(uniform), run(uniform))
    assert not torch.equal(run(uniform), run(uniform, seed=1))
    assert THREAT.contains(run(uniform), batch.x).all()


@pytest.mark.parametrize("draw", [lambda: torch.rand(1).item(), lambda: np.random.rand(), random.random])
def test_global_generators_are_seeded_by_ours_and_left_as_they_were(draw):
    def shift(model, x, y):
        return (1 - 0.1 * draw()) * x

    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        random.seed(noise)
        runs.append(run(shift))
        after = draw()
        torch.manual_seed(noise)
        np.random.seed(noise)
        random.seed(noise)
        assert draw() == after
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], run(shift, seed=1))


@pytest.mark.parametrize("name", ["targets", "steps", "alpha"])
def test_an_option_of_text_may_have_any_name(name):
    def attack(model, x, y, *, targets="all", steps="few", alpha="small"):
        return x

    assert CallableAttack(function=attack, options={name: "other"}).options[name] == "other"


def test_points_outside_are_projected_with_a_warning():
    def far(model, x, y):
        return torch.cat([x[:2] + 0.05, x[2:] + 0.2])

    batch = tiny_batch()
    with pytest.warns(UserWarning, match=r"\A5 of 6 points were outside the threat model and were projected\Z"):
        x_adv = run(far)  # the second image is white, so that 0.05 takes it out of the box
    assert THREAT.contains(x_adv, batch.x).all()
    assert torch.allclose(x_adv[2:], THREAT.project(batch.x + 0.2, batch.x)[2:])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_rounding_is_no_reason_to_warn(norm):
    threat = ThreatModel(norm, 0.03)

    def edge(model, x, y):
        delta = torch.full_like(x, threat.eps) * (1 - 2 * (x > 0.5))
        size = {"Linf": 1, "L2": delta[0].numel() ** 0.5, "L1": delta[0].numel()}[norm]
        return x + delta / size * (1 + 1e-6)

    assert threat.contains(run(edge, threat=threat), tiny_batch().x).all()


def test_points_that_are_not_finite_are_replaced_with_a_warning():
    def broken(model, x, y):
        x = x.clone()
        x[3, 0, 0, 0] = float("nan")
        return x

    with pytest.warns(UserWarning, match=r"\A1 of 6 points were not finite; the images replace them\Z"):
        assert torch.equal(run(broken), tiny_batch().x)


@pytest.mark.parametrize(("returned", "said"), [
    (torch.zeros(1, 1, 8, 8), r"not of shape \(1, 1, 8, 8\)"),
    (None, "not NoneType"),
    (np.zeros((6, 1, 8, 8)), "not ndarray"),
])  # fmt: skip
def test_what_is_no_batch_of_images_is_one_clear_line(returned, said):
    def mine(model, x, y):
        return returned

    with pytest.raises(UserError, match=rf"\Aattack mine must return images of shape \(6, 1, 8, 8\), {said}\Z"):
        run(mine)


def test_a_function_that_fails_is_one_line_with_the_place():
    def mine(model, x, y):
        return x / len([]) + 1 / 0

    with pytest.raises(UserError, match=r"\Aattack mine failed at test_foreign_attacks.py:\d+: ZeroDivisionError.*\Z"):
        run(mine)


def test_its_own_user_errors_are_left_alone():
    def mine(model, x, y):
        raise UserError("mine needs colours")

    with pytest.raises(UserError, match=r"\Amine needs colours\Z"):
        run(mine)


def test_changing_the_images_in_place_does_not_change_the_data():
    def careless(model, x, y):
        y.zero_()
        return x.mul_(0.95)

    batch, fresh = tiny_batch(), tiny_batch()
    call(attack(careless), batch)
    assert torch.equal(batch.x, fresh.x)
    assert torch.equal(batch.y, fresh.y)


def test_the_model_is_as_it_was_and_gives_gradients_of_the_images_alone():
    def careless(model, x, y):
        assert not model.training
        model(x.requires_grad_()).sum().backward()
        model.train()
        return x + x.grad.sign()

    model = tiny_model().train()
    before = fingerprint(model)
    with pytest.warns(UserWarning, match="outside"):
        call(attack(careless), tiny_batch(), model)
    assert same(before, fingerprint(model))


def test_what_it_prints_goes_to_standard_error(capsys):
    def chatty(model, x, y):
        print("robust accuracy 0 %")
        return x

    run(chatty)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "robust accuracy 0 %\n"


@pytest.mark.parametrize("options", [{"steps": 0}, {"alpha": -1.0}])
def test_counts_and_lengths_are_checked(options):
    def mine(model, x, y, *, steps: int = 1, alpha: float = 1.0):
        return x

    with pytest.raises(UserError, match="must be"):
        attack(mine, **options)


def test_a_function_that_cannot_be_called_so_is_refused_when_it_is_made():
    def needs(model, x, y, *, strength):
        return x

    def few(model, x):
        return x

    for function in (needs, few):
        with pytest.raises(UserError, match=r"\Aattack function (needs|few) cannot be called \(.*\(model, x, y\).*\Z"):
            CallableAttack(function=function, options={})
