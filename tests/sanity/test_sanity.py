import copy
import math

import msgspec
import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from bench.core import registry
from bench.core.attack_specs import make_attacks
from bench.core.contracts import frozen
from bench.core.passes import Passes, count_passes
from bench.core.records import Sanity
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.attacked import measure_attack
from bench.evaluate.clean import measure_clean
from bench.evaluate.context import EvalContext
from bench.sanity import checks as sanity_checks
from bench.sanity.ascent import (
    averaged,
    cross_entropy_gradient,
    gradient_of,
    margin,
    margin_gradient,
    projected_ascent,
    rescaled,
    smoothed,
    unit_step,
)
from bench.sanity.checks import TABLE_CHECKS, by_chance, symptom
from bench.sanity.model_under_test import ModelUnderTest
from bench.sanity.verdict import form_verdict
from bench.testing.contracts import fingerprint, same
from tests.linear import exact_margin, interior_batch, linear_model
from tests.sanity.broken_defenses import QuantisedInput, RandomNoise, SaturatedLogits

CPU = torch.device("cpu")
THREATS = {"Linf": ThreatModel("Linf", 0.12), "L2": ThreatModel("L2", 0.5), "L1": ThreatModel("L1", 1.0)}
ATTACKS = {"Linf": ["fgsm", "pgd-20"], "L2": ["fgsm", "pgd-20"], "L1": ["random-noise"]}


@pytest.fixture(scope="module")
def digits():
    return registry.dataset.get("digits")()


def trained(digits, eps, classes=10, batchnorm=False):
    """A small network after some epochs with one-step adversarial examples of eps; without, where it is 0."""
    x = torch.from_numpy(digits.x_train).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(digits.y_train)
    x, y = x[y < classes], y[y < classes]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = registry.model.get("small-cnn")((1, 8, 8), classes, width=8, hidden=64, batchnorm=batchnorm)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(10):
            for rows in torch.randperm(len(x)).split(64):
                point, label = x[rows], y[rows]
                if eps:
                    threat, gradient = ThreatModel("Linf", eps), cross_entropy_gradient
                    with frozen(model):
                        point = projected_ascent(model, point, label, threat, gradient, steps=2, alpha=0.7 * eps)
                optimizer.zero_grad()
                functional.cross_entropy(model(point), label).backward()
                optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def robust(digits):
    return trained(digits, 0.2)


@pytest.fixture(scope="module")
def standard(digits):
    return trained(digits, 0.0)


@pytest.fixture(scope="module")
def normed(digits):
    return trained(digits, 0.2, batchnorm=True)


@pytest.fixture(scope="module")
def test(digits):
    return Split.test(digits, CPU, 150)


def tabled(model, test, threat, specs):
    """The table of an evaluation, without the checks that fail a run whose model is not deterministic."""
    context = EvalContext(model=model, test=test, threat=threat, batch_size=256, seed=0)
    table = measure_clean(model, test, 256)
    for spec, attack in make_attacks(specs, threat).items():
        table |= measure_attack(context, spec, attack, table["clean"]).columns
    return table


def judged(model, test, norm="Linf", specs=None, threat=None, batch_size=256, table=None, seed=0):
    threat = threat or THREATS[norm]
    if table is None:
        table = tabled(model, test, threat, ATTACKS[threat.norm] if specs is None else specs)
    found = form_verdict(model, test, threat, table, seed=seed, batch_size=batch_size)
    return found, {check.name: check for check in found.checks}


def alarms(checks):
    return {name for name, check in checks.items() if check.outcome in ("suspect", "unreliable")}


def share_left(evidence, how):
    """The percentage in `... leaves 100%, 80% with HOW ...`."""
    return int(evidence.partition(f"% with {how}")[0].split()[-1])


# Three broken defenses ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
def test_quantised_input_has_no_gradient_and_a_smoothed_one_shows_it(robust, test, norm):
    found, checks = judged(QuantisedInput(robust, 4), test, norm)
    assert found.verdict == checks["zero-gradient"].outcome == "unreliable"
    assert {"loss-not-raised", "twice-eps-no-better", "huge-eps-survived"} < alarms(checks)
    assert not alarms(checks) & {"stochastic", "batch-dependent", "not-logits", "vanishing-gradient"}
    assert checks["zero-gradient"].value == 1
    assert "PGD-20 leaves 100%" in checks["zero-gradient"].evidence
    assert share_left(checks["zero-gradient"].evidence, "a smoothed gradient") < 95
    assert any(reason.startswith("zero-gradient: margin gradient is zero for 64 of 64") for reason in found.reasons)


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
def test_random_noise_is_stochastic(robust, test, norm):
    found, checks = judged(RandomNoise(robust, 0.3), test, norm)
    assert found.verdict == checks["stochastic"].outcome == "unreliable"
    assert checks["batch-dependent"].outcome == "skipped"
    assert not alarms(checks) & {"zero-gradient", "vanishing-gradient", "not-logits"}
    assert found.reasons[0].startswith("stochastic: 4 passes")
    evidence = checks["stochastic"].evidence
    assert "with the mean gradient of 8 passes" in evidence


@pytest.mark.slow
def test_averaging_shows_how_much_a_single_draw_hides(standard, test):
    _, checks = judged(RandomNoise(standard, 0.3), test, threat=ThreatModel("Linf", 0.2))
    assert share_left(checks["stochastic"].evidence, "the mean gradient of 8 passes") < 50


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
def test_saturated_logits_have_a_gradient_that_the_cross_entropy_loses(robust, test, norm):
    found, checks = judged(SaturatedLogits(robust, 1e4), test, norm)
    assert found.verdict == checks["vanishing-gradient"].outcome == "unreliable"
    assert checks["vanishing-gradient"].value > 0.9
    assert not alarms(checks) & {"stochastic", "batch-dependent", "not-logits", "zero-gradient"}
    assert "PGD-20 leaves 100%" in checks["vanishing-gradient"].evidence
    assert share_left(checks["vanishing-gradient"].evidence, "rescaled logits") < 85


# Sound models ------------------------------------------------------------------------------------------------------


class LogEnsemble(nn.Module):
    """The log of the mean probability of several models."""

    returns_log_probabilities = True

    def __init__(self, *models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x):
        return torch.stack([model(x).softmax(dim=1) for model in self.models]).mean(dim=0).log()


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
def test_a_robust_model_has_no_warnings(robust, test, norm):
    found, checks = judged(robust, test, norm)
    assert (found.verdict, found.reasons) == ("no-warnings", [])
    assert {check.outcome for check in checks.values()} <= {"passed", "skipped"}
    assert len(checks) == 15
    assert checks["zero-gradient"].outcome == checks["twice-eps-no-better"].outcome == "passed"


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.01, 0.2, 0.5])
def test_a_standard_model_has_no_warnings_at_any_eps(standard, test, eps):
    found, checks = judged(standard, test, threat=ThreatModel("Linf", eps))
    assert found.verdict == "no-warnings"
    assert all(check.evidence for check in checks.values())


@pytest.mark.slow
def test_without_attacks_the_verdict_is_not_attacked_unless_a_check_alarms(robust, standard, test):
    for model in (robust, standard):
        found, checks = judged(model, test, specs=[])
        assert (found.verdict, found.reasons) == ("not-attacked", [])
        assert checks["loss-not-raised"].outcome == "passed"
    assert judged(SaturatedLogits(robust, 1e4), test, specs=[])[0].verdict == "unreliable"


@pytest.mark.slow
def test_a_bracket_counts_as_attacked_and_an_attack_under_another_threat_model_does_not(robust, test):
    table = measure_clean(robust, test, 256)
    status = np.where(table["clean"], "open", "broken")
    for columns, verdict in (
        ({"robust/fgsm:norm=L2:eps=1.0": table["clean"]}, "not-attacked"),
        ({"status": status}, "no-warnings"),
    ):
        assert judged(robust, test, table=table | columns)[0].verdict == verdict


class OneClass(nn.Module):
    """A network whose training failed: logits that depend on the image, class 3 always the largest."""

    def forward(self, x):
        return torch.eye(10)[3] + 1e-3 * x.flatten(1)[:, :10]


def test_a_network_that_predicts_one_class_is_told_so_and_nothing_of_gradients(test):
    found, checks = judged(OneClass(), test, specs=["fgsm"])
    assert found.verdict == "suspect"
    assert alarms(checks) == {"one-class"}
    assert "one-class: the model predicts class 3 for all 150 examples" in found.reasons[0]
    assert checks["zero-gradient"].outcome == "skipped"
    few = Split.of_tensors(test.take(torch.arange(8)).x, test.take(torch.arange(8)).y)
    assert judged(OneClass(), few, specs=["fgsm"])[1]["one-class"].outcome == "skipped"
    of_class = (test.y == 3).nonzero()[:, 0]
    only = Split.of_tensors(test.take(of_class).x, test.take(of_class).y)
    assert judged(OneClass(), only, specs=["fgsm"])[1]["one-class"].outcome == "skipped"


@pytest.mark.slow
def test_batch_norm_an_ensemble_and_two_classes_have_no_warnings(digits, robust, standard, normed, test):
    assert judged(normed, test)[0].verdict == "no-warnings"
    assert judged(LogEnsemble(robust, standard), test)[0].verdict == "no-warnings"
    two = digits.y_test < 2
    found, checks = judged(trained(digits, 0.2, classes=2), Split(digits.x_test[two], digits.y_test[two], CPU))
    assert found.verdict == "no-warnings"
    assert checks["loss-not-raised"].outcome == "passed"


@pytest.mark.parametrize("norm", THREATS)
def test_a_linear_model_has_no_warnings_because_one_step_is_as_good_as_many(norm):
    model = linear_model((1, 5, 5), 4)
    batch = interior_batch(model, (1, 5, 5), 80)
    threat = ThreatModel(norm, {"Linf": 0.01, "L2": 0.04, "L1": 0.1}[norm])
    found, checks = judged(model, Split.of_tensors(batch.x, batch.y), threat=threat, specs=[])
    assert found.verdict == "not-attacked"
    assert checks["one-step-better"].value == 0


@pytest.mark.slow
def test_attack_checks_are_skipped_if_no_example_is_robust(standard, test):
    table = measure_clean(standard, test, 256)
    table["robust/pgd-10"] = np.zeros(len(test), bool)
    for model in (standard, SaturatedLogits(standard, 1e4)):
        found, checks = judged(model, test, table=table)
        assert found.verdict == "no-warnings"
        assert checks["zero-gradient"].outcome == "skipped"
        assert "no example" in checks["zero-gradient"].evidence


@pytest.mark.slow
def test_what_few_survivors_of_a_broken_model_show_is_no_sign(standard, test):
    """Ten examples stand of some 145: that an attack misses one in fifteen is bad luck, and it chose them."""
    table = measure_clean(standard, test, 256)
    table["robust/pgd-10"] = np.zeros(len(test), bool)
    table["robust/pgd-10"][table["clean"].nonzero()[0][:10]] = True
    _, checks = judged(SaturatedLogits(standard, 1e4), test, table=table)
    assert checks["vanishing-gradient"].outcome == "skipped"
    assert "10 of 10" in checks["vanishing-gradient"].evidence


# One check at a time -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_probabilities_and_unannounced_log_probabilities_are_not_logits(robust, test):
    for layer, what in ((nn.Softmax(dim=1), "are probabilities"), (nn.LogSoftmax(dim=1), "log probabilities")):
        found, checks = judged(nn.Sequential(robust, layer), test)
        assert found.verdict == "suspect"
        assert alarms(checks) == {"not-logits"}
        assert what in found.reasons[0]
        assert "`model.returns_log_probabilities = True`" in found.reasons[0]


class Shifted(nn.Module):
    """A model whose logits, some of them negative, sum to one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        return logits - logits.mean(dim=1, keepdim=True) + 0.1


@pytest.mark.slow
def test_logits_that_sum_to_one_are_logits(robust, test):
    assert judged(Shifted(robust), test)[0].verdict == "no-warnings"


class OfItsBatch(nn.Module):
    """A model that looks at the whole batch, where it has one: at its mean, its size, or an image's place in it."""

    def __init__(self, model, how):
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x):
        if self.how == "company" or (self.how == "small company" and 1 < len(x) <= 32):
            return self.model(x - 0.2 * x.mean(dim=0))
        if self.how == "place":
            place = torch.arange(len(x)) % 32  # the same in half the batch; nothing is done to the first few
            return self.model(x + 0.2 * (torch.sin(place) * (place >= 8)).reshape(-1, 1, 1, 1))
        return self.model(x)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["company", "small company", "place"])
def test_predictions_that_depend_on_the_batch_are_unreliable(robust, test, how):
    found, checks = judged(OfItsBatch(robust, how), test)
    assert found.verdict == checks["batch-dependent"].outcome == "unreliable"
    assert checks["batch-dependent"].value > 0.02


@pytest.mark.slow
def test_batch_norm_that_keeps_to_batch_statistics_is_unreliable(normed, test):
    model = copy.deepcopy(normed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean = module.running_var = None
            module.track_running_stats = False
    found, checks = judged(model, test)
    assert found.verdict == checks["batch-dependent"].outcome == "unreliable"
    assert "one image fails" in checks["batch-dependent"].evidence


@pytest.mark.slow
def test_a_stochastic_model_under_an_averaging_attack_is_suspect_only(robust, test):
    model = RandomNoise(robust, 0.002)
    table = tabled(model, test, THREATS["Linf"], ["pgd-20"])
    assert judged(model, test, table=table)[0].verdict == "unreliable"
    table["robust/autoattack:version=rand"] = table["robust/pgd-20"]
    found, checks = judged(model, test, table=table)
    assert found.verdict == checks["stochastic"].outcome == "suspect"
    table["robust/autoattack:version=rand:eps=0.1"] = table.pop("robust/autoattack:version=rand")
    assert judged(model, test, table=table)[0].verdict == "unreliable"


class FromMean(nn.Module):
    """Two classes whose margin is a function of the mean pixel."""

    def __init__(self, margin_of):
        super().__init__()
        self.margin_of = margin_of

    def forward(self, x):
        z = self.margin_of(x.flatten(1).mean(dim=1))
        return torch.stack([z, torch.zeros_like(z)], dim=1)


def grey(n=80, at=0.5):
    return Split.of_tensors(torch.full((n, 1, 4, 4), at), torch.zeros(n, dtype=torch.int64))


@pytest.mark.slow
def test_small_steps_caught_in_a_trough_that_one_step_leaps():
    wavy = FromMean(lambda mean: mean - 0.35 + 0.02 * torch.sin(2 * math.pi * (mean - 0.5) / 0.04))
    _, checks = judged(wavy, grey(), threat=ThreatModel("Linf", 0.1), specs=[])
    assert "one-step-better" in alarms(checks)
    straight = FromMean(lambda mean: mean - 0.35)
    assert judged(straight, grey(), threat=ThreatModel("Linf", 0.1), specs=[])[0].verdict == "not-attacked"
    far_away = FromMean(lambda mean: 0.9 + wavy.margin_of(mean))  # where a tenth of the margin is more than a trough
    assert judged(far_away, grey(), threat=ThreatModel("Linf", 0.1), specs=[])[1]["one-step-better"].outcome == "passed"


def test_a_model_that_clips_what_the_attack_adds_is_not_helped_by_eps():
    clipping = FromMean(lambda mean: mean.clamp(0.46, 0.54) - 0.4)
    found, checks = judged(clipping, grey(), threat=ThreatModel("Linf", 0.05), specs=[])
    assert found.verdict == "suspect"
    assert alarms(checks) == {"twice-eps-no-better", "huge-eps-survived"}


@pytest.mark.slow
def test_a_constant_model_survives_the_whole_box():
    found, checks = judged(FromMean(lambda mean: 1 + 0.1 * mean), grey(), threat=ThreatModel("Linf", 0.05), specs=[])
    assert found.verdict == "suspect"
    assert alarms(checks) == {"huge-eps-survived"}
    _, checks = judged(FromMean(lambda mean: 1 + 0.1 * mean), grey(), threat=ThreatModel("Linf", 0.6), specs=[])
    assert checks["twice-eps-no-better"].outcome == "skipped"
    constant = FromMean(lambda mean: torch.ones_like(mean))
    assert "zero-gradient" in alarms(judged(constant, grey(), threat=ThreatModel("Linf", 0.05), specs=[])[1])


class Backwards(torch.autograd.Function):
    """The identity, whose gradient points the other way."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Misled(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(Backwards.apply(x))


@pytest.mark.slow
def test_a_gradient_that_points_the_wrong_way_does_not_raise_the_loss(robust, test):
    found, checks = judged(Misled(robust), test, specs=["pgd-20"])
    assert found.verdict == checks["loss-not-raised"].outcome == "unreliable"
    assert {"queries-better", "huge-eps-survived"} <= alarms(checks)
    assert not alarms(checks) & {"zero-gradient", "vanishing-gradient"}


@pytest.mark.slow
def test_queries_are_skipped_where_no_attack_fits(robust, test, monkeypatch):
    monkeypatch.setattr(sanity_checks, "QUERIES", ("no-such-attack",))
    _, checks = judged(robust, test)
    assert checks["queries-better"].outcome == "skipped"
    assert "no-such-attack" in checks["queries-better"].evidence


class Undifferentiable(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, x):
        return self.model(x)


class NoNumber(nn.Module):
    """A sound model whose gradient is not a number: the root of 0, times 0."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 0 * (x - x).sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", [Undifferentiable, NoNumber])
def test_a_gradient_that_is_none_or_no_number_counts_as_zero(robust, test, wrapper):
    found, checks = judged(wrapper(robust), test, specs=["random-noise"])
    assert found.verdict == checks["zero-gradient"].outcome == "unreliable"


# The table's columns -----------------------------------------------------------------------------------------------


def findings(columns):
    """Of the checks of the table, with the first so many of 100 right examples standing in each column."""
    model = linear_model((1, 5, 5), 4)
    batch, rows = interior_batch(model, (1, 5, 5), 100), np.arange(100)
    test, threat = Split.of_tensors(batch.x, batch.y), ThreatModel("Linf", 0.001)
    table = measure_clean(model, test, 256)
    table |= {f"robust/{spec}": rows < n if isinstance(n, int) else n for spec, n in columns.items()}
    tested = ModelUnderTest(model, test, threat, table, seed=0, batch_size=256)
    return {name: check(tested) for name, check in TABLE_CHECKS.items()}


def of_columns(columns):
    return {name: found.outcome for name, found in findings(columns).items()}


@pytest.mark.slow
@pytest.mark.parametrize(("check", "weak", "strong"), [
    ("fewer-steps-better", "pgd-10", "pgd-50"),
    ("fewer-steps-better", "pgd:steps=7:restarts=2", "pgd:steps=30:restarts=2"),
    ("fewer-steps-better", "fgsm", "pgd-50"),
    ("smaller-eps-better", "pgd-10", "pgd-10:eps=0.3"),
    ("smaller-eps-better", "pgd-10:norm=L2:eps=0.5", "pgd-10:norm=L2:eps=1"),
    ("black-box-better", "square", "pgd-10"),
    ("transfer-better", "transfer:from=elsewhere", "pgd-10"),
])  # fmt: skip
def test_a_weaker_attack_that_wins_is_a_sign(check, weak, strong):
    found = of_columns({weak: 40, strong: 60})
    assert found.pop(check) == "suspect"
    assert set(found.values()) == {"skipped"}
    assert of_columns({strong: 60, weak: 40})[check] == "suspect"
    assert of_columns({weak: 60, strong: 40})[check] == "passed"
    assert of_columns({weak: 88, strong: 90})[check] == "passed"  # which two examples may do by accident


@pytest.mark.parametrize(("first", "second"), [
    ("pgd-10", "apgd-ce-50"), ("pgd-10", "pgd:steps=50:restarts=2"), ("pgd-10:eps=0.3", "pgd-50"),
    ("square", "fgsm"), ("square", "autoattack"), ("pgd-10", "pgd-10:norm=L2:eps=9"), ("pgd", "pgd-50"),
    ("fgsm:eps=0.3", "pgd-50"), ("fgsm", "pgd-50:eps=0.3"), ("square:eps=0.3", "pgd-50"), ("square", "pgd-50:eps=0.3"),
])  # fmt: skip
def test_columns_that_say_nothing_of_one_another_are_not_compared(first, second):
    assert set(of_columns({first: 40, second: 90}).values()) == {"skipped"}


def test_a_skipped_comparison_says_which_attacks_it_needs():
    found = findings({"pgd-10": 60})
    needs = {
        "fewer-steps-better": "needs an attack with two numbers of steps, or FGSM and PGD",
        "smaller-eps-better": "needs an attack at two eps",
        "black-box-better": "needs a black-box and a gradient attack of several steps",
        "transfer-better": "needs a transfer and a gradient attack of several steps",
    }
    assert {name: found[name].evidence for name in needs} == needs


def test_a_sign_in_the_table_needs_no_example_that_stands():
    found = findings({"square": 0, "pgd-10": 60})["black-box-better"]
    assert found.outcome == "suspect"
    assert found.evidence == "after pgd-10, square breaks another 60 of 60 examples"


def test_a_weaker_attack_may_win_by_a_hundredth_even_where_that_is_no_accident():
    rows = np.arange(100)
    assert of_columns({"fgsm": (rows < 90) & (rows >= 12), "pgd-10": 90})["fewer-steps-better"] == "suspect"
    model = linear_model((1, 5, 5), 4)
    batch, rows = interior_batch(model, (1, 5, 5), 2000), np.arange(2000)
    table = measure_clean(model, Split.of_tensors(batch.x, batch.y), 256)
    table |= {"robust/fgsm": rows >= 15, "robust/pgd-10": rows >= 0}
    tested = ModelUnderTest(model, Split.of_tensors(batch.x, batch.y), ThreatModel("Linf", 0.001), table, 0, 256)
    assert TABLE_CHECKS["fewer-steps-better"](tested).outcome == "passed"


@pytest.mark.slow
def test_columns_of_another_threat_model_promise_nothing_about_this_one(robust, test):
    table = tabled(robust, test, THREATS["Linf"], ["pgd-20"])
    nothing = np.zeros(len(test), bool)

    def robust_rows(more):
        return ModelUnderTest(robust, test, THREATS["Linf"], table | more, 0, 256).robust.index.tolist()

    assert len(robust_rows({})) == 64
    assert robust_rows({"robust/pgd-20:eps=0.9": nothing, "robust/fgsm:norm=L2:eps=1": nothing}) == robust_rows({})
    assert robust_rows({"robust/fgsm": nothing}) == []


@pytest.mark.slow
def test_what_stands_is_counted_among_the_right_examples_up_to_the_last(robust, test):
    table = measure_clean(robust, test, 256)
    right = table["clean"].nonzero()[0]
    for every, n, among in ((1, 64, 64), (2, 64, 127), (10, math.ceil(len(right) / 10), len(right))):
        robust_rows = np.zeros(len(test), bool)
        robust_rows[right[::every]] = True
        tested = ModelUnderTest(robust, test, THREATS["Linf"], table | {"robust/x": robust_rows}, 0, 256)
        assert (len(tested.robust), tested.n_correct) == (n, among)
        assert tested.robust.index.tolist() == right[::every][:64].tolist()


# The machinery -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 64, 1000])
def test_by_chance_is_the_binomial_quantile(n, rate):
    most = by_chance(n, rate)
    assert binom.sf(most, n, rate) <= 1e-3
    assert most == 0 or binom.sf(most - 1, n, rate) > 1e-3


def test_so_few_examples_that_all_may_show_a_sign_by_chance_are_too_few():
    assert by_chance(145) == 16
    assert symptom(None, np.ones(16, bool), 145, "sign").outcome == "skipped"
    assert symptom(None, np.arange(17) < 16, 145, "sign").outcome == "passed"


@pytest.mark.parametrize(
    "name", ["cross entropy", "margin", "rescaled", "averaged", pytest.param("smoothed", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("norm", THREATS)
def test_each_ascent_reaches_the_exact_optimum_of_a_linear_model(norm, name):
    gradient = {
        "cross entropy": cross_entropy_gradient, "margin": margin_gradient, "rescaled": rescaled(3.0),
        "averaged": averaged(cross_entropy_gradient, 2),
        "smoothed": smoothed(0.05, 400, torch.Generator().manual_seed(0)),  # one generator per test: the order is free
    }[name]  # fmt: skip
    model = linear_model((1, 4, 4), 2)
    batch, threat = interior_batch(model, (1, 4, 4), 6), ThreatModel(norm, 0.05)
    x_adv = projected_ascent(model, batch.x, batch.y, threat, gradient, steps=20, alpha=0.02)
    assert threat.contains(x_adv, batch.x).all()
    with torch.no_grad():
        reached, clean = margin(model(x_adv), batch.y), margin(model(batch.x), batch.y)
    fall = (clean - reached) / (clean - exact_margin(model, batch, threat))
    assert (fall > 0.97).all()


def test_an_averaged_gradient_is_the_mean_over_passes():
    drawn = iter([1.0, 2.0, 6.0])

    def gradient(model, x, y):
        value = next(drawn)
        return torch.full((2, 3), value), torch.full_like(x, 10 * value)

    logits, uphill = averaged(gradient, 3)(nn.Identity(), torch.zeros(2, 1, 1, 1), torch.zeros(2))
    assert (logits == 3).all()
    assert (uphill == 30).all()


def test_a_sparse_step_is_not_spent_on_pixels_at_the_end_of_the_box():
    model = linear_model((1, 4, 4), 2)
    x = torch.full((1, 1, 4, 4), 0.5)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    wide = projected_ascent(model, x, y, ThreatModel("L1", 16.0), cross_entropy_gradient, steps=20, alpha=2.0)
    corner = torch.where(margin_gradient(model, x, y)[1] > 0, 1.0, 0.0)
    assert torch.equal(wide, corner)


def test_an_ascent_returns_the_best_point_and_not_the_last():
    model, split = FromMean(lambda mean: (mean - 0.47) ** 2 + 0.1), grey(4)
    x, y = split.take(torch.arange(4)).x, torch.zeros(4, dtype=torch.int64)
    found = projected_ascent(model, x, y, ThreatModel("Linf", 0.1), margin_gradient, steps=3, alpha=0.05)
    assert found.mean().item() == pytest.approx(0.45)  # 0.5 -> 0.45 -> 0.5 -> 0.45


@pytest.mark.parametrize("norm", THREATS)
def test_a_step_has_length_one_at_any_size_of_the_gradient(norm):
    gradient = torch.randn((3, 1, 5, 5), generator=torch.Generator().manual_seed(0))
    order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
    for size in (1e-15, 1, 1e15):
        steps = unit_step(size * gradient, ThreatModel(norm, 0.1)).flatten(1)
        assert torch.linalg.vector_norm(steps, ord=order, dim=1) == pytest.approx([1, 1, 1])
    assert not unit_step(0 * gradient, ThreatModel(norm, 0.1)).any()


@pytest.mark.slow
def test_the_gradient_is_of_each_examples_own_loss_and_of_no_weight(robust, test):
    batch = test.take(torch.arange(4))
    together = gradient_of(lambda logits, y: -margin(logits, y))(robust, batch.x, batch.y)[1]
    alone = margin_gradient(robust, batch.x[2:3], batch.y[2:3])[1]
    assert torch.allclose(together[2:3], alone, atol=1e-5)
    assert all(parameter.grad is None for parameter in robust.parameters())


@pytest.mark.slow
def test_a_verdict_depends_on_its_seed_and_leaves_model_and_random_numbers_alone(robust, test):
    noisy = RandomNoise(robust, 0.3)
    table = tabled(noisy, test, THREATS["Linf"], ["pgd-20"])
    before = fingerprint(noisy.train())
    found = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        found.append(judged(noisy, test, table=table)[0])
        assert torch.equal(state, torch.get_rng_state())
    assert found[0] == found[1]
    assert found[0] != judged(noisy, test, table=table, seed=1)[0]
    assert same(before, fingerprint(noisy))
    robust.eval()


@pytest.mark.slow
def test_a_model_is_judged_in_eval_mode_and_given_back_in_its_own(normed, test):
    table = tabled(normed, test, THREATS["Linf"], ["pgd-20"])
    expected = judged(normed, test, table=table)[0]
    model = copy.deepcopy(normed).train()
    before = fingerprint(model)
    assert judged(model, test, table=table)[0] == expected
    assert same(before, fingerprint(model))


class Noise(nn.Module):
    def forward(self, weight):
        return weight + 0.1 * torch.randn_like(weight)


@pytest.mark.slow
def test_weights_that_are_drawn_anew_in_each_pass_are_seen(robust, test):
    model = copy.deepcopy(robust)
    parametrize.register_parametrization(model.fc1, "weight", Noise())
    assert ModelUnderTest(model, test, THREATS["Linf"], {}, 0, 256).stochastic


@pytest.mark.slow
def test_the_batch_size_is_the_memory_and_not_the_verdict(robust, test):
    table = tabled(robust, test, THREATS["Linf"], ["pgd-20"])
    largest = []
    handle = robust.register_forward_pre_hook(lambda _, inputs: largest.append(len(inputs[0])))
    small = judged(robust, test, table=table, batch_size=7)[1]
    handle.remove()
    whole = judged(robust, test, table=table)[1]
    assert {name: check.outcome for name, check in small.items()} == {n: check.outcome for n, check in whole.items()}
    assert max(largest) == 7


@pytest.mark.slow
def test_the_cost_is_bounded(robust, test):
    table = tabled(robust, test, THREATS["Linf"], ["pgd-20"])
    with count_passes(robust, Passes()) as passes:
        judged(robust, test, table=table)
    assert passes.forwards <= 200 * 64
    assert passes.backwards <= 70 * 64


@pytest.mark.slow
def test_a_verdict_survives_json_and_an_old_record_has_no_checks(robust, test):
    for model in (robust, RandomNoise(robust, 0.3)):
        found = judged(model, test)[0]
        assert msgspec.json.decode(msgspec.json.encode(found), type=Sanity) == found
        assert all("\n" not in reason for reason in found.reasons)
        for check in found.checks:
            assert (check.value is None) == (check.threshold is None)
            if check.value is not None:
                assert (check.value > check.threshold) == (check.outcome in ("suspect", "unreliable"))
    old = msgspec.json.decode(b'{"verdict": "unchecked", "reasons": []}', type=Sanity)
    assert old.checks == []
