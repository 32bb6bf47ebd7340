"""Copies of a network are found, however they are disguised; independent trainings of one recipe are not."""

import copy

import pytest
import torch
from torch import nn

from bench.datasets.digits import digits
from bench.datasets.split import Split
from bench.publish.copied_networks import COPY, SAME_SEED, copies_among
from bench.verify.fingerprint import distance, fingerprint

TEST = Split.test(digits(None), torch.device("cpu"), 200)


def network(seed, steps=60):
    """A small network, trained for some steps: with the same data, and another start and order for each seed."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    train = Split(digits(None).x_train, digits(None).y_train, torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(seed)
    while steps > 0:
        for batch in train.shuffled(128, generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.x), batch.y).backward()
            optimizer.step()
            steps -= 1
    return model.eval()


@pytest.fixture(scope="module")
def networks():
    return [network(seed) for seed in range(4)]


def permuted(model):
    order = torch.randperm(48)
    model[1].weight.data, model[1].bias.data = model[1].weight[order].data, model[1].bias[order].data
    model[3].weight.data = model[3].weight[:, order].data


def rescaled(model):
    scale = torch.rand(48) * 5 + 0.2
    model[1].weight.data *= scale[:, None]
    model[1].bias.data *= scale
    model[3].weight.data /= scale


def noisy(model):
    for parameter in model.parameters():
        parameter.data += 0.01 * parameter.std() * torch.randn_like(parameter)


def louder(model):
    model[5].weight.data *= 7
    model[5].bias.data *= 7


DISGUISES = {
    "bias moved": lambda model: model[1].bias.data.add_(1e-6),
    "units permuted": permuted,
    "units rescaled": rescaled,
    "low-order noise": noisy,
    "logits rescaled": louder,
    "noise on rescaled units": lambda model: [change(model) for change in (rescaled, noisy)],
    "all of them": lambda model: [change(model) for change in (permuted, rescaled, noisy, louder)],
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_disguised_copies_are_found(disguise, networks):
    for seed, model in enumerate(networks):
        torch.manual_seed(100 + seed)
        other = copy.deepcopy(model)
        DISGUISES[disguise](other)
        assert distance(fingerprint(model, TEST), fingerprint(other, TEST)) < COPY


def test_averaged_weights_of_a_training_are_no_copy_of_its_last_weights():
    """Two recipes of one seed share the start and the order of the batches; two seeds share neither."""
    middle, last = network(0, steps=36), network(0, steps=96)
    average = copy.deepcopy(last)
    for parameter, a, b in zip(average.parameters(), middle.parameters(), last.parameters(), strict=True):
        parameter.data = 0.15 * a.data + 0.85 * b.data
    ours, theirs = fingerprint(average, TEST), fingerprint(last, TEST)
    assert SAME_SEED < distance(ours, theirs) < COPY
    assert copies_among({"wa/0": ours, "at/0": theirs}) == []
    assert copies_among({"wa/1": ours, "at/0": theirs}) != []
    assert copies_among({"at/1": ours, "at/0": theirs}) != []


def test_independent_trainings_differ_by_more_than_twice_the_threshold(networks):
    prints = {str(seed): fingerprint(model, TEST) for seed, model in enumerate(networks)}
    assert copies_among(prints) == []
    values = list(prints.values())
    assert min(distance(a, b) for i, a in enumerate(values) for b in values[:i]) > 2 * COPY


def test_each_pair_is_named_and_what_has_no_fingerprint_is_left_out(networks):
    same = fingerprint(networks[0], TEST)
    (line,) = copies_among({"a/0": same, "b/1": same, "c/0": fingerprint(networks[1], TEST), "d/0": []})
    assert line.startswith("a/0 and b/1 are the same network")
