"""Several processes train the network that one process trains."""

import pytest
import torch

from bench.core import registry
from bench.testing.contracts import same, tiny_model
from bench.training.batch_norm import of_shares
from tests.training.several_processes import (
    all_of_two,
    contracts_after_an_epoch,
    largest_difference,
    results,
    weights_after_an_epoch,
)

DEFENSES = registry.defense.names()  # at collection, before other tests register plugins

NAMED = ("pgd-at", "atas", "trades", "l-per")  # of the board; l-per regularises a sub-sample of each batch


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes find."""
    folder = tmp_path_factory.mktemp("two")
    return results(2, all_of_two, folder, NAMED, folder)


@pytest.mark.slow
def test_an_epoch_on_digits_with_two_processes_is_that_of_one(two):
    one = weights_after_an_epoch(NAMED)
    for name in NAMED:
        assert largest_difference(one[name][0], two["whole"][name][0]) < 1e-9
        assert one[name][1] == two["whole"][name][1]  # passes


@pytest.mark.slow
def test_batch_norm_that_is_not_synchronised_is_that_of_as_many_shares_in_one_process(two):
    one, _ = weights_after_an_epoch(["pgd-at"], norm_shares=2)["pgd-at"]
    assert largest_difference(one, two["shares"]["pgd-at"][0]) < 1e-9
    assert largest_difference(one, two["whole"]["pgd-at"][0]) > 1e-3


@pytest.mark.slow
def test_an_interrupted_training_of_two_processes_goes_on_bit_for_bit(two):
    whole, resumed = two["resumed"]
    assert same(list(whole.values()), list(resumed.values()))


@pytest.mark.slow
@pytest.mark.parametrize(("why", "said"), [
    ("hooks", "YOPO looks inside the network's passes"),
    ("dropout", "logits for an image are random"),
    ("shares", "norm_shares is 3 and there are 2 processes"),
    ("compiled", "TorchScript"),
])  # fmt: skip
def test_what_several_processes_refuse(two, why, said):
    assert said in two["refused"][why]


@pytest.mark.slow
def test_processes_that_part_are_found_at_the_end_of_the_epoch(two):
    assert "no longer have the same weights" in two["parted"]


@pytest.mark.slow
def test_every_defense_that_is_divisible_trains_as_in_one_process(tmp_path):
    """On 3 processes, whose shares of a batch are not equal."""
    weights = tmp_path / "weights.pt"
    torch.save(tiny_model().state_dict(), weights)
    names = [name for name in DEFENSES if registry.defense.get(name).divisible]
    assert {"yopo", "flyingbird", "flyingbird-plus"} == set(DEFENSES) - set(names)
    one = contracts_after_an_epoch(names, weights)
    three = results(3, contracts_after_an_epoch, tmp_path, names, weights)
    for name in names:
        assert largest_difference(one[name][0], three[name][0]) < 1e-6, name
        assert one[name][1] == three[name][1], name


def test_shares_of_a_batch_have_their_own_statistics():
    model, x = tiny_model().train(), torch.rand(6, 1, 8, 8)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    with of_shares(model, 2):
        logits = model(x)
    mean = model[1].running_mean.clone()
    assert torch.allclose(logits, torch.cat([model(x[:3]), model(x[3:])]), atol=1e-6)
    means = []
    for part in (x[:3], x[3:]):
        model.load_state_dict(start)
        model(part)
        means.append(model[1].running_mean.clone())
    assert torch.allclose(mean, (means[0] + means[1]) / 2, atol=1e-7)
    with of_shares(model.eval(), 2):
        assert torch.equal(model(x), tiny_model_like(model)(x))


def test_a_batch_with_fewer_examples_than_shares():
    x, means = torch.rand(3, 1, 8, 8), []
    for number in (8, 3):
        model = tiny_model().train()
        with of_shares(model, number):
            model(x)
        means.append(model[1].running_mean)
    assert torch.allclose(*means)


def tiny_model_like(model):
    copy = tiny_model().eval()
    copy.load_state_dict(model.state_dict())
    return copy
