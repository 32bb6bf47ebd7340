"""A training step does not wait for the device: what would make it wait is counted on the CPU too."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.testing.contracts import DefenseContract

# operations that read a value of the device (item, bool, float), whose output has a size that depends on values, or
# that make a tensor of numbers of the host, which are copied to the device
READS = {
    "_local_scalar_dense", "is_nonzero", "equal", "item", "nonzero", "masked_select", "unique", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "bincount", "histc", "lift_fresh",
}  # fmt: skip
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
METHODS = {"tolist", "numpy", "cpu", "__array__", "__dlpack__"}  # that read memory below the operations


class Operations(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        by_mask = name in INDEXED and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        if name in READS or by_mask:
            self.found[name] += 1
        return operation(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in METHODS:
            self.found[function.__name__] += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def synchronisations():
    """The calls of the block that would wait for a GPU, or copy to it."""
    found = Counter()
    with Methods(found), Operations(found):
        yield found


def calls_of_a_step(loop):
    """Of a step, its batch and the bookkeeping around it, after a first step."""
    loop.model.train()
    batches = iter(loop.defense.batches(loop))
    loop.train_on(next(batches))
    with loop.counted(loop.model), synchronisations() as found:
        loop.train_on(next(batches))
    return found


@pytest.mark.parametrize("name", ["pgd-at", "atas", "trades", "standard", "fgsm-rs", "free"])
def test_a_step_has_no_synchronisation(name):
    assert calls_of_a_step(DefenseContract().loop(name, label_smoothing=0.1)) == {}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(), lambda x: float(x.sum()), lambda x: bool(x.any()), lambda x: x.flatten().tolist(),
        lambda x: x[x > 0], torch.nonzero, lambda x: x + torch.tensor([1.0, 2.0]), lambda x: torch.equal(x, x),
        lambda x: x.masked_select(x > 0), lambda x: x.clone().index_put_((x > 0,), x.sum()), lambda x: x.cpu(),
    ],
)  # fmt: skip
def test_what_waits_is_counted(wait):
    with synchronisations() as found:
        wait(torch.ones(2, 2))
    assert found
