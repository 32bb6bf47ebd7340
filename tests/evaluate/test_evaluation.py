import numpy as np
import pytest
import torch
from torch import nn

from bench.api import evaluate
from bench.core import seeds
from bench.core.attack_specs import PlannedAttack, make_attacks
from bench.core.contracts import Attack
from bench.core.errors import CheckError, UserError
from bench.core.example_table import union, worst_case
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.attacked import measure_attack
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import evaluate_split
from bench.evaluate.invariants import check_evaluation
from bench.evaluate.partial_results import PartialResults
from bench.evaluate.witnesses import collect_witnesses
from bench.testing.contracts import tiny_batch, tiny_model
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE = (1, 5, 5)
THREAT, FAR = ThreatModel("Linf", 0.03), ThreatModel("Linf", 0.9)


@pytest.fixture
def linear():
    """A linear model, 40 images of which a few are labelled wrong, and their split."""
    model = linear_model(SHAPE, 4)
    batch = interior_batch(model, SHAPE, 40)
    batch.y[:5] = (batch.y[:5] + 1) % 4
    return model, batch, Split.of_tensors(batch.x, batch.y)


def test_the_table_says_what_is_exactly_known(linear):
    model, batch, _ = linear
    found = evaluate(model, batch.x, batch.y, threat=THREAT, attacks=["pgd-40:restarts=5", "fgsm", "random-noise"])
    table = found.table
    assert not table["clean"][:5].any()
    assert table["clean"][5:].all()
    exact = exact_margin(model, batch, THREAT).numpy()
    assert 3 < (exact < 0).sum() < 37
    clear = np.abs(exact) > 0.02
    assert np.array_equal((table["robust/pgd-40:restarts=5"])[clear], (exact > 0)[clear])
    assert not np.any(table["robust/random-noise"] & (exact < -0.02) & ~table["clean"])


def test_robust_to_all_implies_robust_to_each_and_the_worst_is_per_example(linear):
    model, batch, _ = linear
    found = evaluate(model, batch.x, batch.y, threat=THREAT, attacks=["pgd-3", "random-noise:samples=3"])
    worst = found.table["robust/pgd-3"] & found.table["robust/random-noise:samples=3"]
    assert set(found.witnesses["index"]) == set(found.table["index"][found.table["clean"] & ~worst])


def test_every_witness_is_inside_the_threat_model_and_misclassified(linear):
    model, batch, _ = linear
    found = evaluate(model, batch.x, batch.y, threat=THREAT, attacks=["pgd-10"])
    index = torch.from_numpy(found.witnesses["index"])
    x_adv = torch.from_numpy(found.witnesses["x_adv"])
    assert len(index) > 3
    assert THREAT.contains(x_adv, batch.x[index]).all()
    assert (model(x_adv).argmax(dim=1) != batch.y[index]).all()


def context_of(model, test, threat=THREAT, **options):
    return EvalContext(model=model, test=test, threat=threat, **{"seed": 0, "batch_size": 16} | options)


def measured(model, test, spec, threat=THREAT, clean=None, **options):
    (attack,) = make_attacks([spec], threat).values()
    clean = np.arange(len(test)) >= 5 if clean is None else clean
    return measure_attack(context_of(model, test, threat, **options), spec, attack, clean)


def test_a_finished_batch_is_not_attacked_again_and_gives_the_same(linear, tmp_path):
    model, _, test = linear
    whole = measured(model, test, "pgd-10")
    measured(model, test, "pgd-10", partial_results=PartialResults(tmp_path, "it"))
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3
    parts[1].unlink()
    calls = []
    model.register_forward_hook(lambda *call: calls.append(call))
    again = measured(model, test, "pgd-10", partial_results=PartialResults(tmp_path, "it"))
    assert 2 <= len(calls) <= 11  # one batch: ten steps at most, and the evaluator's own question
    for key, column in whole.columns.items():
        assert np.array_equal(column, again.columns[key])
    assert np.array_equal(whole.witnesses, again.witnesses)
    assert whole.result.forwards == again.result.forwards


def test_clean_errors_are_neither_attacked_nor_robust(linear):
    model, _, test = linear
    found = measured(model, test, "pgd-10")
    assert not found.columns["robust/pgd-10"][:5].any()
    assert not set(found.broken) & set(range(5))
    assert found.columns["passes/pgd-10"][:5].sum() == 0
    stands = found.columns["robust/pgd-10"]
    assert (found.columns["passes/pgd-10"][stands] == 21).all()  # ten steps, and the evaluator's own question
    assert found.result.forwards + found.result.backwards >= found.columns["passes/pgd-10"].sum()


def test_an_example_that_fell_is_counted_until_it_fell(linear):
    model, _, test = linear
    found = measured(model, test, "bim")  # which goes on after that
    passes, fell = found.columns["passes/bim"], found.broken
    assert (passes[fell] < 20).any()
    assert (passes[found.columns["robust/bim"]] == 21).all()


def test_the_first_attack_that_breaks_an_example_gives_its_witness(linear):
    model, _, test = linear
    found = {spec: measured(model, test, spec) for spec in ("fgsm", "pgd-10")}
    witnesses = collect_witnesses(found)
    by_fgsm = set(found["fgsm"].broken.tolist())
    assert by_fgsm
    for index, spec in zip(witnesses["index"], witnesses["attack"], strict=True):
        assert spec == ("fgsm" if index in by_fgsm else "pgd-10")


class Liar(Attack):
    """Claims nothing, returns the clean image."""

    def perturb(self, model, batch, threat, *, generator):
        return batch.x


def test_success_is_what_a_fresh_forward_pass_says(linear):
    model, _, test = linear
    clean = np.ones(40, bool)
    clean[:5] = False
    found = measure_attack(context_of(model, test), "liar", PlannedAttack(Liar(), THREAT), clean)
    assert np.array_equal(found.columns["robust/liar"], clean)


class Nearest(Attack):
    """A minimum-norm attack: the nearest point of the other side, at any distance."""

    minimum_norm = True

    def perturb(self, model, batch, threat, *, generator):
        weight = model[1].weight
        gap = weight[batch.y] - weight[1 - batch.y]
        margin = (gap * batch.x.flatten(1)).sum(dim=1)
        step = (margin / gap.abs().sum(dim=1) * 1.001)[:, None] * gap.sign()
        return batch.x - step.reshape(batch.x.shape)


def test_a_minimum_norm_attack_keeps_its_distances_and_counts_inside_eps_only():
    model = linear_model(SHAPE, 2, seed=1)
    batch = interior_batch(model, SHAPE, 20)
    test, threat = Split.of_tensors(batch.x, batch.y), ThreatModel("Linf", 0.05)
    attack = PlannedAttack(Nearest(), threat)
    found = measure_attack(context_of(model, test, threat), "nearest", attack, np.ones(20, bool))
    exact = exact_margin(model, batch, threat).numpy()
    assert 0 < (exact < 0).sum() < 20
    assert np.array_equal(found.columns["robust/nearest"], found.columns["distance/nearest"] > 0.05)
    assert np.array_equal(found.columns["robust/nearest"], exact > 0)


class Fickle(nn.Module):
    """Wrong the fifth time it is asked: twice it was of clean images, then by the attack, now by the evaluator."""

    def __init__(self):
        super().__init__()
        self.model, self.calls = tiny_model(), 0

    def forward(self, x):
        self.calls += 1
        logits = self.model(x)
        return logits.roll(1, dims=1) if self.calls == 5 else logits


def test_a_model_that_changes_its_mind_fails_the_run():
    batch, threat = tiny_batch(), ThreatModel("Linf", 1e-6)
    with pytest.raises(CheckError, match="witness"):
        evaluate(Fickle(), batch.x, batch.y, threat=threat, attacks=["pgd-2"])


class Noisy(nn.Module):
    """Another answer each time, near the boundary."""

    def __init__(self):
        super().__init__()
        self.model = tiny_model()

    def forward(self, x):
        return self.model(x + 0.3 * torch.randn_like(x))


@pytest.mark.slow
def test_a_stochastic_model_is_measured_and_called_unreliable():
    batch = tiny_batch(40)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        found = evaluate(Noisy(), batch.x, batch.y, threat=THREAT, attacks=["pgd-5"])
    assert len(found.witnesses["index"]) > 0
    assert found.sanity.verdict == "unreliable"
    assert any("stochastic" in reason for reason in found.sanity.reasons)


def test_a_model_whose_logits_are_not_finite_fails_the_run():
    model = tiny_model()
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(CheckError, match="not finite"):
        evaluate(model, tiny_batch().x, tiny_batch().y, threat=THREAT, attacks=["fgsm"])


class Holes(nn.Module):
    """A sound model on the images themselves, without an answer anywhere else."""

    def __init__(self, x):
        super().__init__()
        self.model, self.x = tiny_model(), x

    def forward(self, x):
        known = (x.flatten(1)[:, None] == self.x.flatten(1)).all(dim=2).any(dim=1)
        return torch.where(known[:, None], self.model(x), torch.nan)


@pytest.mark.parametrize("attack", ["pgd-2", "random-noise", "fgsm"])
def test_a_model_without_an_answer_off_the_images_is_not_robust_but_refused(attack):
    batch = tiny_batch()
    with pytest.raises(CheckError, match="not finite"):
        evaluate(Holes(batch.x), batch.x, batch.y, threat=THREAT, attacks=[attack])


@pytest.mark.parametrize(("change", "hint"), [
    (lambda x, y: (x * 255, y), r"\[0, 1\]"),
    (lambda x, y: (x[:0], y[:0]), "at least 1"),
    (lambda x, y: (x.numpy(), y), "tensor"),
    (lambda x, y: (x, y + 10), "labels must be 0 to 9"),
    (lambda x, y: (x, y[:3]), "labels"),
    (lambda x, y: (x, y.float()), "int64"),
    (lambda x, y: (x.flatten(1), y), "N,C,H,W"),
])  # fmt: skip
def test_evaluate_refuses_what_is_not_images_and_labels(change, hint):
    x, y = change(tiny_batch().x, tiny_batch().y)
    with pytest.raises(UserError, match=hint):
        evaluate(tiny_model(), x, y, threat=THREAT, attacks=["fgsm"])


def test_an_attack_given_twice_is_refused():
    with pytest.raises(UserError, match="twice"):
        make_attacks(["pgd-10", "pgd:steps=10"], THREAT)


def test_an_evaluation_does_not_depend_on_the_global_seed(linear):
    model, _, test = linear
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        attacks = make_attacks(["pgd-5"], THREAT)
        found.append(evaluate_split(context_of(model, test, seed=3), attacks))
    assert np.array_equal(found[0].witnesses["x_adv"], found[1].witnesses["x_adv"])
    assert seeds.derive(3, "pgd-5", 0) != seeds.derive(3, "pgd-5", 1)


def test_randomness_depends_on_the_runs_seed_and_on_the_batch(linear):
    model, batch, test = linear
    first, second = (measured(model, test, "random-noise:samples=1", seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.witnesses, second.witnesses)
    twice = Split.of_tensors(batch.x[5:10].repeat(2, 1, 1, 1), batch.y[5:10].repeat(2))
    found = measured(model, twice, "random-noise:samples=20", threat=FAR, batch_size=5, clean=np.ones(10, bool))
    assert len(found.broken) == 10
    assert not np.array_equal(found.witnesses[:5], found.witnesses[5:])


@pytest.mark.parametrize(("change", "hint"), [
    (lambda w: w | {"x_adv": w["x_adv"] + np.float32(0.5)}, "outside the threat model"),
    (lambda w: {key: array[1:] for key, array in w.items()}, "have a witness"),
])  # fmt: skip
def test_a_witness_that_proves_nothing_fails_the_run(change, hint, linear):
    model, batch, test = linear
    found = evaluate(model, batch.x, batch.y, threat=THREAT, attacks=["pgd-10"])
    context, threats = context_of(model, test), {"pgd-10": THREAT}
    check_evaluation(context, found.table, found.witnesses, threats)
    with pytest.raises(CheckError, match=hint):
        check_evaluation(context, found.table, change(found.witnesses), threats)


def test_an_attack_may_have_a_threat_model_of_its_own(linear):
    model, batch, _ = linear
    far = "pgd-10:eps=0.06"
    found = evaluate(model, batch.x, batch.y, threat=THREAT, attacks=["pgd-10", far, "pgd-10:norm=L2:eps=0.09"])
    table = found.table
    for spec, threat in (("pgd-10", THREAT), (far, ThreatModel("Linf", 0.06))):
        exact = exact_margin(model, batch, threat).numpy()
        assert not np.any(~table[f"robust/{spec}"] & table["clean"] & (exact > 0))
    assert (table["robust/pgd-10"] & ~table[f"robust/{far}"]).any()
    assert np.array_equal(worst_case(table), table["robust/pgd-10"])
    both = np.logical_and.reduce([table[f"robust/{spec}"] for spec in found.attacks])
    assert union(table).robust_acc == both.mean()
    # each threat model has its own witness of each example that it broke
    for spec in found.attacks:
        fell = table["index"][table["clean"] & ~table[f"robust/{spec}"]]
        assert sorted(found.witnesses["index"][found.witnesses["attack"] == spec]) == fell.tolist()


def test_the_threat_models_own_numbers_are_left_out_of_the_spec():
    assert list(make_attacks(["pgd-10:eps=0.03:norm=Linf", "fgsm:eps=3/100"], THREAT)) == ["pgd-10", "fgsm"]
    assert list(make_attacks(["pgd:eps=8/255:steps=3"], THREAT)) == [f"pgd:steps=3:eps={8 / 255!r}"]


@pytest.mark.parametrize("spec", ["pgd-10", "pgd:eps=0.5", "pgd:norm=L2:eps=0.03", "pgd:norm=L2:eps=0.5:steps=3"])
def test_a_canonical_spec_is_read_again(spec):
    made = make_attacks([spec], THREAT)
    assert make_attacks(list(made), THREAT) == made


@pytest.mark.parametrize("eps", ["0", "-1"])
def test_an_attack_has_a_positive_eps(eps):
    with pytest.raises(UserError, match=r"eps .* must be a positive number"):
        make_attacks([f"pgd:eps={eps}"], THREAT)


def test_another_norm_needs_an_eps():
    with pytest.raises(UserError, match="give its eps too"):
        make_attacks(["pgd-10:norm=L2"], THREAT)
