"""Which proofs an evaluation keeps, also if it was interrupted."""

from dataclasses import dataclass

import pytest
import torch

from bench.core.contracts import Certificate, Certifier
from bench.core.errors import UserError
from bench.core.network_format import Description
from bench.core.proof_format import proof_arrays, proofs_from
from bench.core.records import Sanity
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import evaluate_split
from bench.evaluate.partial_results import PartialResults
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE, THREAT, EMPTY = (1, 5, 5), ThreatModel("Linf", 0.03), Description(1, [])
calls = []


@dataclass(frozen=True, kw_only=True)
class Proving(Certifier):
    """Certifies what is robust. Examples that are multiples of `every` have a proof of `length` bytes."""

    length: int = 3
    every: int = 1
    problem: str = ""

    def describe(self, model, image):
        if self.problem:
            raise UserError(self.problem)
        assert image.shape == (1, *SHAPE)
        return EMPTY

    def certify(self, model, batch, threat, *, generator):
        calls.append(len(batch))
        certified = exact_margin(model, batch, threat) > 0
        proofs = [bytes([i] * self.length) if i % self.every == 0 else b"" for i in batch.index.tolist()]
        return Certificate(threat.eps * certified, certified, proof=proofs)


@pytest.fixture(autouse=True)
def _no_verdict(monkeypatch):
    monkeypatch.setattr("bench.evaluate.evaluation.form_verdict", lambda *_, **__: Sanity("unchecked", []))


def evaluated(certifiers, folder=None):
    """The proofs, and which of 40 images are robust."""
    model = linear_model(SHAPE, 4)
    batch = interior_batch(model, SHAPE, 40)
    context = EvalContext(
        model=model, test=Split.of_tensors(batch.x, batch.y), threat=THREAT, batch_size=16, seed=0,
        partial_results=folder and PartialResults(folder, "it"),
    )  # fmt: skip
    robust = torch.nonzero(exact_margin(model, batch, THREAT) > 0).flatten().tolist()
    assert 0 < len(robust) < 40
    return evaluate_split(context, {}, certifiers=certifiers).proofs, robust


def test_the_shortest_proof_of_each_certified_example_is_kept():
    proofs, robust = evaluated({"a": Proving(), "b": Proving(length=2, every=3), "c": Proving(length=3, every=2)})
    assert proofs.of_example == {i: bytes([i] * (2 if i % 3 == 0 else 3)) for i in robust}
    assert list(proofs.of_example) == robust
    assert proofs.network is EMPTY
    assert (proofs.summary.count, proofs.summary.missing) == (len(robust), "")


def test_an_example_may_have_none():
    proofs, robust = evaluated({"a": Proving(every=2)})
    assert list(proofs.of_example) == [i for i in robust if i % 2 == 0]


def test_a_network_that_cannot_be_described_has_no_proofs():
    proofs, _ = evaluated({"a": Proving(problem="layer 3 is odd")})
    assert (proofs.of_example, proofs.network, proofs.summary.missing) == ({}, None, "layer 3 is odd")
    none, _ = evaluated({"a": Proving(length=0)})
    assert none.summary.missing == "no certifier of the run gives proofs for this network"


def test_partial_results_hold_the_proofs(tmp_path):
    first, _ = evaluated({"a": Proving(every=2)}, tmp_path)
    before = len(calls)
    again, _ = evaluated({"a": Proving(every=2)}, tmp_path)
    assert len(calls) == before
    assert again.of_example == first.of_example


def test_proofs_come_back_from_their_file():
    proofs = {3: b"abc", 7: b"", 1: b"x"}
    assert proofs_from(proof_arrays(proofs)) == proofs
    assert proofs_from(proof_arrays({})) == {}
