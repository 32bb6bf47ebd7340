import numpy as np
import pytest
import torch

from bench.core.config import TrainingConfig
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split, hold_out, training_rows

CPU = torch.device("cpu")
N, SIZE = 11, (4, 6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (N, *SIZE, 3), dtype=np.uint8)


@pytest.fixture
def make(images):
    return lambda n=N, **augmentation: Split(images[:n], np.arange(n) % 5, CPU, **augmentation)


@pytest.mark.parametrize("crop", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, N, 100])
def test_in_order_is_the_data_in_order(make, images, crop, batch_size):
    split = make(crop=crop, flip=crop > 0)
    batches = list(split.in_order(batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(N))
    assert torch.cat([batch.y for batch in batches]).tolist() == [i % 5 for i in range(N)]
    x = torch.cat([batch.x for batch in batches])
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


def test_shapes(make):
    split = make(crop=2)
    assert len(split) == N
    assert split.image_shape == (3, *SIZE)
    assert split.canvas.shape == (N, 3, SIZE[0] + 4, SIZE[1] + 4)
    assert split.canvas.dtype == torch.uint8


def test_shuffled_covers_each_index_once(make):
    batches = list(make(crop=1, flip=True).shuffled(4, seeded()))
    order = torch.cat([batch.index for batch in batches]).tolist()
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert order != sorted(order) == list(range(N))
    assert torch.cat([batch.y for batch in batches]).tolist() == [i % 5 for i in order]


@pytest.mark.parametrize(("n", "size", "lengths"), [(9, 4, [4, 4]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 4, [1])])
def test_a_last_batch_of_one_is_dropped(make, n, size, lengths):
    assert [len(batch) for batch in make(n).shuffled(size, seeded())] == lengths


def test_shuffled_is_a_function_of_the_generator(make):
    split = make(crop=1, flip=True)
    first, second, other = (torch.cat([b.x for b in split.shuffled(4, seeded(s))]) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_without_augmentation_shuffled_images_are_the_images(make):
    split = make()
    for batch in split.shuffled(4, seeded()):
        assert batch.view is None
        assert torch.equal(batch.x, split.take(batch.index).x)


@pytest.mark.parametrize("crop", [0, 2])
def test_a_bank_follows_crop_and_flip(make, crop):
    split = make(crop=crop, flip=True)
    bank = split.canvas.float() / 255
    batch = split.augmented(torch.randperm(N, generator=seeded()), seeded())
    assert torch.equal(batch.read(bank), batch.x)
    assert not torch.equal(batch.x, split.take(batch.index).x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_written_to_a_bank_is_read_again(make, dtype):
    split = make(crop=2, flip=True)
    bank = torch.zeros(split.canvas.shape, dtype=dtype)
    batch = split.augmented(torch.tensor([7, 2, 5]), seeded())
    value = torch.randn(batch.x.shape, generator=seeded(), requires_grad=True)
    batch.write(bank, value)
    found = batch.read(bank)
    assert found.dtype == torch.float32
    assert torch.equal(found, value.detach().to(dtype).float())
    assert not bank.requires_grad
    assert bank.flatten(1).any(dim=1).nonzero().flatten().tolist() == [2, 5, 7]


def test_a_bank_of_the_canvas_written_as_x_is_the_canvas_there(make):
    split = make(crop=2, flip=True)
    bank = torch.full(split.canvas.shape, -1.0)
    batch = split.augmented(torch.arange(N), seeded())
    batch.write(bank, batch.x * 255)
    covered = bank >= 0
    assert covered.sum() == batch.x.numel()
    assert torch.equal(bank[covered].round(), split.canvas.float()[covered])


def test_a_bank_of_numbers_has_one_an_example(make):
    batch = make(crop=2, flip=True).augmented(torch.tensor([7, 2]), seeded())
    bank = torch.zeros(N, dtype=torch.float16)
    batch.write(bank, torch.tensor([1.5, -2.0]))
    assert batch.read(bank).tolist() == [1.5, -2.0]
    assert (bank[7], bank[2], bank.count_nonzero()) == (1.5, -2.0, 2)


@pytest.mark.parametrize(("n", "share", "held"), [(100, 0.02, 2), (100, 0.5, 50), (100, 0.001, 1), (100, 0.0, 0)])
def test_hold_out_parts_the_rows(n, share, held):
    kept, out = hold_out(n, share, 0)
    assert len(out) == held
    assert sorted([*kept, *out]) == list(range(n))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(out) > 0).all()


def test_hold_out_has_its_own_seed():
    np.random.seed(0)
    torch.manual_seed(0)
    state = np.random.get_state()[1].copy()
    first, second, other = (hold_out(200, 0.1, seed)[1].tolist() for seed in (3, 3, 4))
    assert first == second != other
    assert np.array_equal(np.random.get_state()[1], state)


def test_a_training_split_has_the_rows_and_the_augmentation_of_the_settings(images):
    y = np.arange(N) % 5
    arrays = Arrays("own", images, y, images, y)
    config = TrainingConfig(crop=1, flip=True, cutout=2, cutmix=0.5, validation=0.3, validation_seed=4)
    rows, held_out = training_rows(arrays, config)
    assert [rows.tolist(), held_out.tolist()] == [each.tolist() for each in hold_out(N, 0.3, 4)]
    whole, part = Split.training(arrays, config, CPU), Split.training(arrays, config, CPU, rows[:2])
    assert (len(whole), part.y.tolist()) == (N, y[rows[:2]].tolist())
    for split in (whole, part):  # a few rows may lack a class, but CutMix needs labels of all
        assert (split.crop, split.flip, split.cutout, split.cutmix, split.classes) == (1, True, 2, 0.5, 5)


@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (14, 4), (3, 4), (1, 4)])
def test_count_batches_is_what_shuffled_gives(n, size):
    split = Split(np.zeros((n, 2, 2, 1), np.uint8), np.zeros(n, np.int64), torch.device("cpu"))
    assert split.count_batches(size) == len(list(split.shuffled(size, torch.Generator())))
