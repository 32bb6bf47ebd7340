"""Results of one attack or certifier on one batch, stored in a file until the run is finished."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.core.contracts import Attack, Batch, Certifier, frozen
from bench.core.example_table import Flags
from bench.core.passes import AttackPasses, Passes, count_passes
from bench.core.time_limit import time_limit
from bench.evaluate.clean import predict_with_margin
from bench.evaluate.context import EvalContext

FOR_PROGRAMMERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The decided examples of a batch, with their witnesses and the cost.

    index (B,): rows of the split. broken (B,): whether a counterexample was found; witnesses: these, (broken,C,H,W).
    """

    index: npt.NDArray[np.int64]
    certified: Flags
    broken: Flags
    witnesses: npt.NDArray[np.float32]
    forwards: int
    backwards: int
    seconds: float
    warnings: npt.NDArray[np.str_]

    @property
    def searched(self) -> int | None:
        """The number of sub-problems searched, over all examples; None if nothing was searched."""
        return None


@dataclass(frozen=True, kw_only=True)
class AttackBatch(BatchResult):
    """margin (B,): z_y - max over j != y of z_j at the point found, inf outside the threat model.

    points (B,C,H,W): these points; empty unless `store_points`. passes (B,): of each example.
    passes_to_break (B,): until it was first seen to be misclassified.
    """

    margin: npt.NDArray[np.float32]
    points: npt.NDArray[np.float32]
    distance: npt.NDArray[np.float32]
    passes: npt.NDArray[np.int64]
    passes_to_break: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CertifierBatch(BatchResult):
    """finds_counterexamples: if False, `broken` is unknown. prediction (B,): of another classifier; else empty.

    proofs: the bytes of all proofs, one after the other; proof_ends (B,): where each example's ends.
    nodes (B,): the sub-problems that were searched; empty if the certifier does not search.
    """

    radius: npt.NDArray[np.float32]
    tolerance: float
    prediction: npt.NDArray[np.int64]
    finds_counterexamples: bool
    proofs: npt.NDArray[np.uint8]
    proof_ends: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int64]

    @property
    def searched(self) -> int | None:
        return int(self.nodes.sum()) if len(self.nodes) else None


def run_attack(
    context: EvalContext, attack: Attack, batch: Batch, generator: torch.Generator, *, store_points: bool
) -> AttackBatch:
    """Run one attack on one batch. A fresh forward pass decides which examples are broken."""
    start = time.perf_counter()
    model, threat = context.model, context.threat
    with (
        warnings.catch_warnings(record=True, action="always") as caught,
        count_passes(model, AttackPasses(batch.x, batch.y, threat)) as passes,
    ):
        x_adv = attack(model, batch, threat, generator=generator)
        with frozen(model):
            prediction, margin = predict_with_margin(model, x_adv, batch.y)
    misclassified = prediction != batch.y
    distance = threat.distance(x_adv, batch.x)
    distance = torch.where(misclassified, distance, torch.inf) if attack.minimum_norm else distance
    allowed = threat.contains(x_adv, batch.x)
    broken = misclassified & allowed
    total, until_broken = passes.total(), passes.passes_until_broken
    return AttackBatch(
        index=_array(batch.index),
        certified=np.zeros(len(batch), np.bool_),
        broken=_array(broken),
        witnesses=_array(x_adv[broken]),
        distance=_array(distance.float()),
        margin=_array(torch.where(allowed, margin, torch.inf)),
        points=_array(x_adv if store_points else x_adv[:0]),
        passes=_array(total),
        passes_to_break=_array(torch.where(broken & (until_broken > 0), until_broken, total)),
        forwards=passes.forwards,
        backwards=passes.backwards,
        seconds=time.perf_counter() - start,
        warnings=_messages(caught),
    )


def run_certifier(
    context: EvalContext, certifier: Certifier, batch: Batch, generator: torch.Generator, *, seconds: float = math.inf
) -> BatchResult:
    """Run one certifier on one batch. seconds: the time limit that the user has set; inf for none."""
    start = time.perf_counter()
    model = certifier.model_view(context.model)
    with (
        time_limit(start + seconds if seconds < math.inf else None),
        warnings.catch_warnings(record=True, action="always") as caught,
        count_passes(model, Passes()) as passes,
    ):
        certificate = certifier(model, batch, context.threat, generator=generator)
    if certificate.broken is None or certificate.witness is None:
        finds_counterexamples, broken, witness = False, torch.zeros_like(certificate.certified), batch.x[:0]
    else:
        finds_counterexamples, broken = True, certificate.broken
        witness = certificate.witness[broken].to(batch.x.dtype)
    flags = certificate.certified.tolist()
    proofs = [
        proof if is_certified else b""
        for proof, is_certified in zip(certificate.proof or [b""] * len(batch), flags, strict=True)
    ]
    return CertifierBatch(
        index=_array(batch.index),
        certified=_array(certificate.certified),
        broken=_array(broken),
        witnesses=_array(witness),
        radius=_array(certificate.radius.float()),
        tolerance=float(torch.as_tensor(certificate.tolerance, dtype=torch.float64).max()),
        prediction=_array(batch.y[:0] if certificate.prediction is None else certificate.prediction),
        finds_counterexamples=finds_counterexamples,
        proofs=np.frombuffer(b"".join(proofs), dtype=np.uint8),
        proof_ends=np.cumsum([len(proof) for proof in proofs], dtype=np.int64),
        nodes=_array(batch.y[:0] if certificate.nodes is None else certificate.nodes),
        forwards=passes.forwards,
        backwards=passes.backwards,
        seconds=time.perf_counter() - start,
        warnings=_messages(caught),
    )


def broken_in(results: Sequence[BatchResult]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The indices of all broken examples, and the adversarial example of each."""
    if not results:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    index = np.concatenate([result.index[result.broken] for result in results])
    return index, np.concatenate([result.witnesses for result in results])


def proofs_in(results: Sequence[BatchResult]) -> dict[int, bytes]:
    """The proof of each example that has one, by index."""
    found: dict[int, bytes] = {}
    for result in results:
        if isinstance(result, CertifierBatch):
            start = 0
            for example, end in zip(result.index.tolist(), result.proof_ends.tolist(), strict=True):
                if end > start:
                    found[example] = result.proofs[start:end].tobytes()
                start = end
    return found


def warnings_in(results: Sequence[BatchResult]) -> list[str]:
    return sorted({str(text) for result in results for text in result.warnings})


def seconds_in(results: Sequence[BatchResult]) -> float:
    return round(float(sum(result.seconds for result in results)), 3)


def write_result(context: EvalContext, key: str, result: BatchResult) -> None:
    """Store the result of a batch under a key that `read_result` takes; nothing without `partial_results`."""
    if context.partial_results is not None:
        context.partial_results.write(key, {name: np.asarray(value) for name, value in vars(result).items()})


def read_result(context: EvalContext, key: str, batch: Batch, method: Attack | Certifier) -> BatchResult | None:
    """Read the stored result of a batch; None if there is none, or it belongs to another evaluation."""
    arrays = None if context.partial_results is None else context.partial_results.read(key)
    kind = AttackBatch if isinstance(method, Attack) else CertifierBatch
    if arrays is None or set(arrays) != {field.name for field in fields(kind)}:
        return None
    values: dict[str, Any] = {key: value if value.ndim else value.item() for key, value in arrays.items()}
    result = kind(**values)
    return result if np.array_equal(result.index, _array(batch.index)) else None


def _messages(caught: Sequence[warnings.WarningMessage]) -> npt.NDArray[np.str_]:
    """The texts of warnings about the result; not those for programmers, which libraries give about their own code."""
    texts = {str(each.message) for each in caught if not issubclass(each.category, FOR_PROGRAMMERS)}
    return np.array(sorted(texts), dtype=np.str_)


def _array(values: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = values.detach().cpu().numpy()
    return array
