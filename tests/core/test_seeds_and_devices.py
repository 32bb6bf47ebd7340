import json
import os

import pytest
import torch
from torch import nn

from bench.core import devices, seeds

CPU = torch.device("cpu")


def test_derived_seed_is_pinned():
    # SHA-256("0:training"), first four bytes, halved: another value makes every published number another run's
    assert seeds.derive(0, "training") == 1077332374


def test_derived_seeds_are_in_range_and_differ():
    purposes = [(s, *names) for s in range(20) for names in ((), ("data",), ("attack", "pgd"), ("attack", "pgd", 1))]
    found = [seeds.derive(*purpose) for purpose in purposes]
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 2**31 for seed in found)


def test_generator_is_a_function_of_seed_and_purpose():
    def draw(seed, *names):
        return torch.rand(4, generator=seeds.generator(CPU, seed, *names))

    assert torch.equal(draw(1, "attack", 3), draw(1, "attack", 3))
    assert not torch.equal(draw(1, "attack", 3), draw(1, "attack", 4))
    assert not torch.equal(draw(1, "attack", 3), draw(2, "attack", 3))


def test_generator_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    seeds.generator(CPU, 0, "data")
    assert torch.equal(torch.get_rng_state(), before)


def test_fingerprint_is_plain_and_complete():
    found = seeds.fingerprint(CPU, 3)
    assert json.loads(json.dumps(found)) == found
    assert (found["device"], found["threads"]) == ("cpu", 3)
    assert found["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert torch.backends.cpu.get_cpu_capability() in found["hardware"]
    assert set(found) == {"versions", "git_commit", "platform", "hardware", "device", "threads"}


def test_processors_of_the_same_name_are_told_apart(monkeypatch):
    core = "cpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n\n"
    found = []
    for model in (1, 17):
        monkeypatch.setattr(seeds.Path, "read_text", lambda _, model=model: 2 * core.format(model))
        found.append(seeds.cpu_name())
    assert found[0].startswith("AMD EPYC family 25 model 1 (")
    assert found[1].startswith("AMD EPYC family 25 model 17 (")


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Linear(5, 7), (5,), 35),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 4, 6), 8 * 24 * 27),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2), (4, 5, 5), 8 * 4 * 18),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)), (1, 4, 4), 72 + 24),
    ],
)
def test_multiply_adds_in_closed_form(model, shape, expected):
    assert devices.multiply_adds(model, shape) == expected


def test_multiply_adds_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    devices.multiply_adds(model, (1, 4, 4))
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_threads_follow_the_size(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert devices.choose_threads(nn.Linear(100, 100), (100,)) == 1
    monkeypatch.setattr(devices, "WORTH_A_THREAD", 10_000)
    assert devices.choose_threads(nn.Linear(100, 100), (100,)) == 6
    assert devices.choose_threads(nn.Linear(100, 99), (100,)) == 1
