"""Records a forward pass operation by operation, so that it does not matter how the model is written.

The operations are those of torch's dispatcher, below modules, functions, methods, hooks, parametrizations and
overridden Python code. All of these are therefore recorded by their effect.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.core.contracts import mode_of
from bench.core.errors import UserError
from certifiers.python_state import python_state, random_state

# methods that take values out of a tensor, so that Python code can depend on them
READS = {
    "numpy", "tolist", "item", "data_ptr", "storage", "untyped_storage", "__array__", "__bool__", "__float__",
    "__int__", "__index__", "__contains__", "__dlpack__", "__repr__", "__format__", "__reduce_ex__", "__deepcopy__",
}  # fmt: skip
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """An image-dependent tensor: the output of a call. 0 is the image."""

    call: int
    shape: Shape


@dataclass(frozen=True)
class Call:
    """One operation on image-dependent tensors.

    operation: its name without overload; an in-place operation has the name of its out-of-place version. arguments: by
    the names of its schema; image-dependent tensors are `Value`, others are constants. where: the layer that called it,
    for messages. problem: why its result is unknown, or None.
    """

    operation: str
    arguments: dict[str, Any]
    shape: Shape
    where: str
    problem: str | None = None


@dataclass(frozen=True)
class Recording:
    """The calls of one forward pass, in order (the first is the image), and which of them returned the logits."""

    calls: list[Call]
    output: int
    logits: Tensor
    transposed: dict[int, Tensor]  # id of a constant that is a transpose -> the tensor that was transposed


def record(model: nn.Module, x: Tensor) -> Recording:
    """Run a model in eval mode on images x (B,C,H,W). UserError if its output depends on more than these images."""
    recorder, name = Recorder(model, x), type(model).__name__
    rng, state = random_state(), python_state(model)
    try:
        with mode_of(model, training=False), recorder.active():
            logits = model(x)
    except UserError:
        raise
    except Exception as error:  # whatever a model raises
        text = " ".join(str(error).split())
        text = text[:120] + ("..." if len(text) > 120 else "")
        dtypes = {each.dtype for each in model.parameters() if each.is_floating_point()} - {x.dtype}
        if dtypes:
            kinds = ", ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
            text = (
                f"its weights are {kinds}, images {str(x.dtype).removeprefix('torch.')}; convert it with model.float()"
            )
        elif recorder.problems:
            text = recorder.problems[0]
        raise UserError(
            f"{name} cannot be bounded: on images of shape {tuple(x.shape)} it raises {type(error).__name__}: {text}"
        ) from error
    problems = recorder.problems
    if random_state() != rng:
        problems.append("it draws random numbers")
    if state.changed_by(python_state(model), recorder.used()):
        problems.append("its forward changes its own state")
    if problems:
        raise UserError(f"{name} cannot be bounded: {problems[0]}")
    if not isinstance(logits, Tensor) or (output := recorder.value(logits)) is None:
        raise UserError(f"{name} cannot be bounded: it must return logits (B,K) that depend on the images")
    if isinstance(output, str):
        raise UserError(f"{name} cannot be bounded: {output}")
    return Recording(recorder.calls, output.call, logits, recorder.transposed)


class Recorder(TorchDispatchMode):
    """Records every operation on image-dependent tensors.

    A tensor's memory may be shared with others: views, and results of in-place operations. After an in-place operation
    only its own result is known; the other tensors in that memory must not be used.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.calls = [Call("image", {}, tuple(x.shape), "the image")]
        self.problems: list[str] = []
        self.busy = False
        self.transposed: dict[int, Tensor] = {}
        self._model, self._names = model, {id(module): name for name, module in model.named_modules()}
        self._inside: list[nn.Module] = []
        self._kept: list[Any] = [x]  # so that no id is reused
        self._values = {id(x): Value(0, tuple(x.shape))}
        self._image = _memory(x)
        self._image_dependent, self._created, self._read = {self._image}, set[int](), set[int]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes seconds; nothing is compiled while it records

    @contextmanager
    def active(self) -> Iterator[None]:
        """Record inside the block, compiled modules uncompiled and data-parallel ones on one device."""
        with ExitStack() as stack:
            if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it would take seconds
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for module in self._model.modules():
                if isinstance(module, nn.DataParallel):
                    stack.callback(setattr, module, "device_ids", module.device_ids)
                    module.device_ids = []
            for handle in (
                register_module_forward_pre_hook(lambda module, _: self._inside.append(module)),
                register_module_forward_hook(lambda *_: self._leave(), always_call=True),
            ):
                stack.callback(handle.remove)
            stack.enter_context(_Reads(self))
            stack.enter_context(self)
            yield

    def value(self, tensor: Tensor) -> Value | str | None:
        """The value of an image-dependent tensor, or the problem if it is no longer known; None for a constant."""
        if id(tensor) in self._values:
            return self._values[id(tensor)]
        if _memory(tensor) in self._image_dependent:
            return f"{self._where()} uses a tensor after an in-place operation has changed it"
        return None

    def used(self) -> list[int]:
        """The ids of all tensors that took part."""
        return [id(each) for each in self._kept]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.busy = True  # reads by the recorder itself do not count as reads by the model
        try:
            return self._call(func, args, kwargs or {})
        finally:
            self.busy = False

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = list(_tensors((args, kwargs)))
        values = [self.value(each) for each in given]
        memories = {_memory(each) for each in given}
        written = self._written(func, args, kwargs)
        result = func(*args, **kwargs)
        results = list(_tensors(result))
        self._kept += [*given, *results]
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.problems.append(f"{self._where()} draws random numbers ({func.overloadpacket.__name__})")
        if any(value is not None for value in values):
            self._record(func, args, kwargs, values, result, written)
            self._read |= {_memory(each) for each, value in zip(given, values, strict=True) if value is None}
        else:
            if any(_memory(each) not in self._created - self._read for each in written):
                self.problems.append(f"{self._where()} changes a tensor that the model keeps")
            if func is torch.ops.aten.t.default:
                self.transposed[id(result)] = given[0]
        self._created |= {_memory(each) for each in results} - memories
        return result

    def _record(
        self, func: Any, args: Any, kwargs: Any, values: Sequence[Any], result: Any, written: Sequence[Tensor]
    ) -> None:
        where, name = self._where(), func._schema.name.removeprefix("aten::")
        results, arguments = list(_tensors(result)), self._arguments(func, args, kwargs)
        read = any(not isinstance(each, Tensor) and each is not None for each in _flat(result))
        if read or torch.Tag.dynamic_output_shape in func.tags:
            self.problems.append(f"{where} makes its computation depend on values of the image ({name})")
        problem = next((value for value in values if isinstance(value, str)), None)
        if written:
            memory = _memory(written[0])
            if name[-1] != "_" or len(written) != 1 or not results or results[0] is not written[0]:
                problem = problem or f"{where} writes into a tensor ({name})"
            elif memory == self._image:
                problem = problem or f"{where} writes into the image ({name})"
            elif memory not in self._image_dependent:
                problem = problem or f"{where} writes into a constant ({name})"
            for each in written:
                self._forget(each)
            name = name.removesuffix("_")
        for k, each in enumerate(results):
            if k:
                problem = problem or f"{where} uses the second output of {name}"
            self._values[id(each)] = Value(len(self.calls), tuple(each.shape))
            self._image_dependent.add(_memory(each))
            self.calls.append(Call(name, arguments, tuple(each.shape), where, problem))

    def _forget(self, written: Tensor) -> None:
        """The memory of a tensor was written: mark all tensors in it as unknown."""
        memory = _memory(written)
        self._image_dependent.add(memory)
        for each in self._kept:
            if isinstance(each, Tensor) and id(each) in self._values and _memory(each) == memory:
                del self._values[id(each)]

    def _arguments(self, func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        """All arguments by name, with the defaults of those that were not given."""
        schema = func._schema.arguments
        named = {argument.name: argument.default_value for argument in schema}
        named |= {argument.name: value for argument, value in zip(schema, args, strict=False)} | kwargs
        return {name: self._replaced(value) for name, value in named.items()}

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._values.get(id(value), value)
        return [self._replaced(each) for each in value] if isinstance(value, (list, tuple)) else value

    @staticmethod
    def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
        schema = func._schema.arguments
        named = {argument.name: value for argument, value in zip(schema, args, strict=False)} | kwargs
        return [
            tensor
            for argument in schema
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(named.get(argument.name))
        ]

    def _leave(self) -> None:
        self._inside.pop()

    def _where(self) -> str:
        if not self._inside:
            return type(self._model).__name__
        module = self._inside[-1]
        name, kind = self._names.get(id(module), ""), type(module).__name__
        return f"layer '{name}' ({kind})" if name else kind


class _Reads(TorchFunctionMode):
    """Detects reads of an image-dependent tensor's values, even if the model catches every exception."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if (
            name in READS
            and not self.recorder.busy
            and any(self.recorder.value(each) is not None for each in _tensors(args))
        ):
            where = self.recorder._where()
            self.recorder.problems.append(f"{where} makes its computation depend on values of the image ({name})")
        return func(*args, **(kwargs or {}))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def _tensors(value: Any) -> Iterator[Tensor]:
    return (each for each in _flat(value) if isinstance(each, Tensor))


def _memory(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        raise UserError(f"a tensor of layout {tensor.layout} cannot be bounded") from None
