"""Converts a network description (bench/core/network_format.py) to ONNX, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core import network_format as described
from bench.core.extras import import_extra
from bench.core.network_format import Array, Description, Layer
from leaderboard.recheck.layers import Reader

OPSET, IR_VERSION = 17, 8  # versions that verifiers can read
INPUT, OUTPUT = "X", "Y"


def onnx_module() -> Any:
    """The package onnx; UserError if it is not installed."""
    return import_extra("onnx", "onnx", "--vnnlib")


def onnx_bytes(description: Description, tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The ONNX model of images X (1,C,H,W) to logits Y (1,K). tensors: of the weights file, by name.

    Derived constants (batch norm) are computed in float64 and rounded once.
    """
    onnx = onnx_module()
    nodes = _Nodes(Reader(tensors))
    for k, layer in enumerate(description.layers):
        nodes.add(k, layer)
    nodes.append("Identity", [nodes.names[-1]], OUTPUT)
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    ends = [description.layers[at].shape for at in (0, -1)]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, float32, [1, *shape])]
        for name, shape in zip((INPUT, OUTPUT), ends, strict=True)
    )
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in nodes.constants.items()]
    made = [helper.make_node(kind, given, [result], **options) for kind, given, result, options in nodes.nodes]
    graph = helper.make_graph(made, "network", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="robust-bracket")
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString()
    return serialized


def onnx_logits(model: bytes, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute logits (N,K) for images (N,C,H,W) with onnx's reference evaluator, one image at a time."""
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(model)
    return np.concatenate([evaluator.run(None, {INPUT: image[None]})[0] for image in images])


class _Nodes:
    """Collects the operators and constants of added layers. names: the name of the output of each layer."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.names: list[str] = []
        self.shapes: list[list[int]] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []

    def add(self, k: int, layer: Layer) -> None:
        self.names.append(INPUT if isinstance(layer, described.Image) else f"layer_{k}")
        self.shapes.append(layer.shape)
        given, result = [self.names[i] for i in layer.inputs], self.names[-1]
        if isinstance(layer, described.Image):
            return
        if isinstance(layer, described.Linear):
            bias = [] if layer.bias is None else [self.array(layer.bias)]
            self.append("Gemm", [*given, self.array(layer.weight), *bias], result, transB=1)
        elif isinstance(layer, described.Conv):  # a TransposedConv is one too
            self.conv(layer, given, result)
        elif isinstance(layer, described.Scale):
            self.append("Mul", [*given, self.along(layer.weight, layer.shape)], f"{result}_scaled")
            self.append("Add", [f"{result}_scaled", self.along(layer.bias, layer.shape)], result)
        elif isinstance(layer, described.Reshape) and len(layer.shape) == 1:
            self.append("Flatten", given, result, axis=1)
        elif isinstance(layer, described.Reshape):
            self.append("Reshape", [*given, self.constant(np.array([1, *layer.shape], dtype=np.int64))], result)
        elif isinstance(layer, described.Rectifier):
            self.rectifier(layer, given, result)
        elif isinstance(layer, described.Concatenate):
            self.append("Concat", given, result, axis=1)
        elif isinstance(layer, described.Maximum):
            self.append("Add", given[:2], result)  # r + b, see network_format.py
        else:
            self.append("Sum" if len(given) != 2 else "Add", given, result)

    def append(self, kind: str, given: list[str], result: str, **options: Any) -> None:
        self.nodes.append((kind, given, result, options))

    def conv(self, layer: described.Conv, given: list[str], result: str) -> None:
        bias = [] if layer.bias is None else [self.array(layer.bias)]
        options: dict[str, Any] = {
            "strides": layer.stride, "pads": layer.padding * 2, "dilations": layer.dilation, "group": layer.groups,
        }  # fmt: skip
        kind, weight = "Conv", self.array(layer.weight)
        if isinstance(layer, described.TransposedConv):
            kind, before = "ConvTranspose", self.shapes[layer.inputs[0]][1:]
            kernel, steps = self.constants[weight].shape[2:], zip(layer.stride, layer.padding, strict=True)
            least = [(n - 1) * step - 2 * pad for n, (step, pad) in zip(before, steps, strict=True)]
            reach = [dilation * (size - 1) + 1 for dilation, size in zip(layer.dilation, kernel, strict=True)]
            options["output_padding"] = [n - a - b for n, a, b in zip(layer.shape[1:], least, reach, strict=True)]
        self.append(kind, [*given, weight, *bias], result, **options)

    def rectifier(self, layer: described.Rectifier, given: list[str], result: str) -> None:
        leak, _ = self.reader.read(layer.leak)
        if not leak.any():
            self.append("Relu", given, result)
        elif leak.size == 1:
            self.append("LeakyRelu", given, result, alpha=float(leak.item()))
        else:
            self.append("PRelu", [*given, self.constant(leak.astype(np.float32))], result)

    def array(self, array: Array) -> str:
        return self.constant(self.reader.read(array)[0].astype(np.float32))

    def along(self, array: Array, shape: list[int]) -> str:
        """An array that broadcasts against a layer's output; (C,) of a batch norm is (C,1,1)."""
        value = self.reader.read(array)[0]
        if isinstance(array, described.NormScale | described.NormShift):
            value = value.reshape(-1, *[1] * (len(shape) - 1))
        return self.constant(value.astype(np.float32))

    def constant(self, value: npt.NDArray[Any]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        return name
