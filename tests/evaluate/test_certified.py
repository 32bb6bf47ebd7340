"""One certifier on a split: its columns, what is kept, what is refused."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bench.core import registry
from bench.core.attack_specs import make_attacks
from bench.core.contracts import Certifier
from bench.core.errors import CheckError, UserError
from bench.core.records import Sanity
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.certified import make_certifiers, measure_certifier
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import evaluate_split
from bench.evaluate.invariants import check_certificates, check_evaluation
from bench.evaluate.partial_results import PartialResults
from tests.certifying import Complete, Exact, Liar, Smooth, calls
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE = (1, 5, 5)
THREAT = ThreatModel("Linf", 0.03)


@pytest.fixture(autouse=True)
def _forget():
    calls.clear()


@pytest.fixture(autouse=True)
def _no_verdict(monkeypatch):
    """The sanity checks have tests of their own."""
    monkeypatch.setattr("bench.evaluate.evaluation.form_verdict", lambda *_, **__: Sanity("unchecked", []))


@pytest.fixture
def linear():
    """A linear model, 40 images of which five are labelled wrong, their split, and their exact margins."""
    model = linear_model(SHAPE, 4)
    batch = interior_batch(model, SHAPE, 40)
    margin = exact_margin(model, batch, THREAT).numpy()
    batch.y[:5] = (batch.y[:5] + 1) % 4
    return model, batch, Split.of_tensors(batch.x, batch.y), margin


def context_of(linear, threat=THREAT, **options):
    options = {"batch_size": 16, "seed": 0} | options
    return EvalContext(model=linear[0], test=linear[2], threat=threat, **options)


def measured(linear, certifier, clean=None, **options):
    clean = np.arange(40) >= 5 if clean is None else clean
    return measure_certifier(context_of(linear, **options), "it", certifier, clean)


def evaluated(linear, certifiers, attacks=()):
    return evaluate_split(context_of(linear), make_attacks(attacks, THREAT), certifiers=certifiers)


def test_the_columns_say_what_is_exactly_known(linear):
    found, margin = measured(linear, Exact()), linear[3]
    proven = (margin > 0) & (np.arange(40) >= 5)
    assert 5 < proven.sum() < 35
    assert np.array_equal(found.columns["certified/it"], proven)
    assert np.array_equal(found.columns["radius/it"], np.where(proven, np.float32(0.03), np.float32(0)))
    assert set(found.columns) == {"certified/it", "radius/it"}
    assert found.result.certified_acc == proven.sum() / 40
    assert found.result.mean_radius == pytest.approx(0.03 * proven.sum() / 40)
    assert (found.result.tolerance, found.result.kind, found.result.broken) == (1e-6, "deterministic", None)


def test_clean_errors_are_not_given_to_the_certifier(linear):
    measured(linear, Exact())
    assert [len(index) for _, index, _ in calls] == [16, 16, 3]
    assert not {0, 1, 2, 3, 4} & {i for _, index, _ in calls for i in index}


def test_a_finished_batch_is_not_certified_again(linear, tmp_path):
    whole = measured(linear, Exact(), partial_results=PartialResults(tmp_path, "it"))
    sorted(tmp_path.iterdir())[1].unlink()
    calls.clear()
    again = measured(linear, Exact(), partial_results=PartialResults(tmp_path, "it"))
    assert len(calls) == 1
    assert all(np.array_equal(whole.columns[key], again.columns[key]) for key in whole.columns)


def test_a_probabilistic_certifier_answers_for_all_examples_by_itself(linear):
    answer = int(linear[1].y[0])
    found = evaluated(linear, {"smooth": Smooth(answer=answer)})
    right = found.table["label"] == answer
    assert (right & ~found.table["clean"]).any()
    assert (found.table["prediction/smooth"] == answer).all()
    assert np.array_equal(found.table["certified/smooth"], right)
    assert found.certifiers["smooth"].mean_radius == pytest.approx(0.06 * right.mean())
    assert found.certifiers["smooth"].kind == "probabilistic"
    assert found.audited == 0  # its certificates are of another classifier


def test_a_certifier_that_finds_counterexamples_gives_their_witnesses(linear):
    found, margin = evaluated(linear, {"complete": Complete()}), linear[3]
    right = np.arange(40) >= 5
    assert np.array_equal(found.table["certified/complete"], right & (margin > 0))
    assert np.array_equal(found.table["broken/complete"], right & (margin < 0))
    assert found.certifiers["complete"].broken == (right & (margin < 0)).sum()
    assert found.witnesses["index"].tolist() == np.flatnonzero(right & (margin < 0)).tolist()
    assert set(found.witnesses["attack"]) == {"complete"}


def test_a_false_certificate_fails_the_run_where_an_attack_breaks_it(linear):
    with pytest.raises(CheckError, match=r"liar certifies test example \d+, but pgd-10 breaks it"):
        evaluated(linear, {"liar": Liar()}, ["pgd-10"])


def test_a_false_certificate_fails_the_run_where_a_certifier_breaks_it(linear):
    with pytest.raises(CheckError, match=r"liar certifies test example .* complete breaks it"):
        evaluated(linear, {"liar": Liar(), "complete": Complete()})


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_false_certificate_fails_the_audit(seed, linear):
    """Of 35 certificates one is tried: at an eps at which nearly all are false, any will do."""
    far = ThreatModel("Linf", 0.25)
    with pytest.raises(CheckError, match=r"liar certified test example \d+, but bracket-attack breaks it"):
        evaluate_split(context_of(linear, far, seed=seed), {}, certifiers={"liar": Liar()})


def test_true_certificates_pass_the_audit(linear):
    assert evaluated(linear, {"exact": Exact()}).audited == 1


def test_a_finished_table_that_contradicts_itself_names_the_example(linear):
    found = evaluated(linear, {"complete": Complete()})
    row = int(np.flatnonzero(found.table["broken/complete"])[0])
    proven = np.arange(40) == row
    table = found.table | {"certified/x": proven, "radius/x": (0.03 * proven).astype(np.float32)}
    with pytest.raises(CheckError, match=f"x certifies test example {row}, but complete breaks it"):
        check_evaluation(context_of(linear), table, found.witnesses, {"complete": THREAT})


@dataclass(frozen=True, kw_only=True)
class Far(Exact):
    """Claims a radius that is twice eps where eps itself is safe."""

    def certify(self, model, batch, threat, *, generator):
        found = super().certify(model, batch, threat, generator=generator)
        return type(found)(found.radius * 2, found.certified)


def test_a_radius_that_holds_another_attacks_witness_fails_the_run(linear):
    """The attack is under a larger eps, so that it contradicts the radius and not the threat model."""
    evaluated(linear, {"exact": Exact()}, ["pgd-10:eps=0.055"])
    with pytest.raises(CheckError, match="within the radius certified for it"):
        evaluated(linear, {"far": Far()}, ["pgd-10:eps=0.055"])


class Inside(Liar):
    """Claims that what is wrong is certified."""

    def certify(self, model, batch, threat, *, generator):
        found = super().certify(model, batch, threat, generator=generator)
        return type(found)(found.radius, torch.ones_like(found.certified))


def test_what_is_wrong_cannot_be_certified(linear):
    columns = measured(linear, Inside(), clean=np.ones(40, bool)).columns
    clean = np.arange(40) != 3
    with pytest.raises(CheckError, match="test example 3, but the clean image breaks it"):
        check_certificates({"index": np.arange(40), "clean": clean, **columns})


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.setattr(registry.certifier, "_plugins", {})
    registry.certifier("linear-exact")(Exact)


@pytest.mark.usefixtures("_registered")
def test_certifiers_by_spec():
    found = make_certifiers(["linear-exact", "linear-exact:least=0.1"])
    assert found == {"linear-exact": Exact(), "linear-exact:least=0.1": Exact(least=0.1)}
    for names, hint in (
        (["linear-exakt"], "did you mean 'linear-exact'"),
        (["linear-exact", "linear-exact:least=0"], "given twice"),
        (["linear-exact:eps=0.1"], "no option 'eps'"),
    ):
        with pytest.raises(UserError, match=hint):
            make_certifiers(names)


@pytest.mark.usefixtures("_registered")
def test_a_certifier_with_a_threat_model_of_its_own_is_refused():
    @registry.certifier("own")
    @dataclass(frozen=True, kw_only=True)
    class Own(Liar):
        eps: float = 0.1

    @registry.certifier("no-class")
    def no_class(model, x):
        return x

    assert issubclass(Own, Certifier)
    with pytest.raises(UserError, match="must not have an option eps"):
        make_certifiers(["own"])
    with pytest.raises(UserError, match="not a subclass"):
        make_certifiers(["no-class"])
