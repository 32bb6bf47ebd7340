"""`bench export RUN --vnnlib DIR`: a run's network and examples as instances for other verifiers, as in VNN-COMP.

DIR/network.onnx is the network, DIR/NAME.vnnlib the property of an example in VNN-LIB 2.0, and DIR/instances.csv lists
network, property and time limit of each. A property holds (`unsat`) if no image within eps has another logit that
reaches the label's.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.core.contracts import frozen
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Table, Threat, certified, survivors
from bench.core.files import read_arrays, write_atomically
from bench.core.record_files import TABLE, WEIGHTS, read_run
from bench.core.records import Record
from bench.datasets.split import Split
from bench.publish.onnx_network import onnx_bytes, onnx_logits, onnx_module
from bench.verify.inputs import Settings, load_data, load_model, make_context
from certifiers.network_description import described_network
from leaderboard.render import threat_name

NETWORK, INSTANCES = "network.onnx", "instances.csv"
# Examples whose logits are compared; the largest difference, in units of the largest logit >= 1. A float32 logit is
# rounded by 6e-8 of itself, so that with logits of 5,900, which certified training makes, torch's own differ by .001
# between a batch and a single image.
COMPARED, TOLERANCE = 2, 1e-5


@dataclass(frozen=True)
class Exported:
    """How many instances were written, and the largest difference of ONNX's logits, in units of the largest."""

    instances: int
    difference: float


def export_vnnlib(folder: Path, target: Path, timeout: int, settings: Settings, *, only_open: bool = False) -> Exported:
    """Write the instances of a run's correctly classified examples into `target`.

    timeout: seconds for each instance. only_open: the examples that are neither certified nor broken. UserError for a
    threat model other than Linf and for a network that is not piecewise linear; CheckError if the ONNX network computes
    other logits than the model.
    """
    onnx_module()
    record, table = read_run(folder), read_arrays(folder / TABLE)
    if record.threat.norm != "Linf":
        raise UserError(f"{folder} is under {threat_name(record.threat)}; VNN-LIB properties are written for Linf")
    index = np.flatnonzero(survivors(table) & ~certified(table) if only_open else table["clean"])
    if not len(index):
        raise UserError(f"{folder} has no {'open' if only_open else 'correctly classified'} examples to export")
    data = load_data(record, table, settings)
    model = load_model(folder / WEIGHTS, record, data, settings)
    context = make_context(model, Split.test(data, settings.device), record, settings)
    batch = context.test.take(torch.from_numpy(index).to(context.test.y.device))
    network = _network(model, batch.x[:1], record)
    images, labels = batch.x.cpu().numpy(), batch.y.tolist()
    difference = _compare(network, model, batch.x[:COMPARED])
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / NETWORK, network)
    names = [instance_name(record, example) for example in index.tolist()]
    for name, image, label in zip(names, images, labels, strict=True):
        text = property_text(image, label, data.classes, record.threat)
        write_atomically(target / f"{name}.vnnlib", f"; {_about(record, name, label)}\n{text}".encode())
    lines = "".join(f"{NETWORK},{name}.vnnlib,{timeout}\n" for name in names)
    write_atomically(target / INSTANCES, lines.encode())
    return Exported(len(names), difference)


def instance_name(record: Record, example: int) -> str:
    """The name of an example's property, which identifies the run."""
    return f"{record.config_hash}-{record.seed}-example-{example}"


def examples_by_instance(record: Record, table: Table) -> dict[str, int]:
    """Instance name -> test example, for all examples of a run."""
    return {instance_name(record, example): example for example in table["index"].tolist()}


def property_text(image: npt.NDArray[np.float32], label: int, classes: int, threat: Threat) -> str:
    """The VNN-LIB 2.0 query of one image (C,H,W) in [0, 1]: an image within eps whose label is not the largest logit.

    The bounds describe the ball, and [0, 1] if the threat model has this box, in float64 at full precision.
    """
    low, high = image.astype(np.float64) - threat.eps, image.astype(np.float64) + threat.eps
    if threat.box:
        low, high = np.maximum(0, low), np.minimum(1, high)
    shape = ", ".join(map(str, (1, *image.shape)))
    lines = [
        "(vnnlib-version <2.0>)", "", "(declare-network network", f"  (declare-input X float32 [{shape}])",
        f"  (declare-output Y float32 [1, {classes}])", ")", "", *_bounds(low, high), "",
        "(assert (or", *(f"  (>= Y[0, {k}] Y[0, {label}])" for k in range(classes) if k != label), "))", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _bounds(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> Iterable[str]:
    for at, least, most in zip(np.ndindex(low.shape), low.ravel().tolist(), high.ravel().tolist(), strict=True):
        pixel = f"X[0, {', '.join(map(str, at))}]"
        yield f"(assert (>= {pixel} {_decimal(least)}))"
        yield f"(assert (<= {pixel} {_decimal(most)}))"


def _decimal(value: float) -> str:
    """The shortest decimal that reads as `value`, without an exponent, which VNN-LIB does not have."""
    return np.format_float_positional(value, trim="0")


def _about(record: Record, name: str, label: int) -> str:
    about = f"{name}: {record.defense} on {record.dataset}, {record.model}, {threat_name(record.threat)}"
    return re.sub(r"[^ -~]", "?", f"{about}, label {label}")


def _network(model: nn.Module, image: torch.Tensor, record: Record) -> bytes:
    try:
        with frozen(model), torch.no_grad():
            description = described_network(model, image)
    except UserError as error:
        raise UserError(f"{record.model} cannot be exported: {error}") from error
    return onnx_bytes(description, {key: value.cpu().numpy() for key, value in model.state_dict().items()})


def _compare(network: bytes, model: nn.Module, images: torch.Tensor) -> float:
    with frozen(model), torch.no_grad():
        wanted = model(images).cpu().numpy()
    difference = np.abs(onnx_logits(network, images.cpu().numpy()) - wanted)
    relative = float((difference / np.maximum(1, np.abs(wanted).max(axis=1, keepdims=True))).max())
    if not relative <= TOLERANCE:
        raise CheckError(f"the ONNX network differs from the model by {relative:.2g}; it was not written")
    return relative
