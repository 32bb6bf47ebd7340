import pytest
import torch
from torch.nn.functional import pad as zero_pad

from bench.datasets.augment import CropFlip

SIZE = (4, 6)
every_kind = pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (1, False), (2, True)])
every_type = pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(pad, flip, n=8, seed=0):
    """A view, and a canvas of more images than it takes with the rows that it takes."""
    view = CropFlip.draw(n, SIZE, pad, flip, seeded(seed))
    index = torch.randperm(n + 5, generator=seeded(seed + 1))[:n]
    canvas = torch.randint(256, (n + 5, 3, SIZE[0] + 2 * pad, SIZE[1] + 2 * pad), generator=seeded(seed + 2))
    return view, canvas, index


@every_kind
def test_read_is_slice_and_flip_of_each_example(pad, flip):
    images = torch.randint(256, (20, 3, *SIZE), generator=seeded(5))
    canvas = zero_pad(images, [pad] * 4)
    view = CropFlip.draw(20, SIZE, pad, flip, seeded())
    found = view.read(canvas, torch.arange(20))
    for i in range(20):
        columns = view.columns[i]
        mirrored = bool(columns[0] > columns[-1])
        top, left = int(view.rows[i, 0]), int(columns.min())
        crop = canvas[i, :, top : top + SIZE[0], left : left + SIZE[1]]
        assert torch.equal(found[i], crop.flip(-1) if mirrored else crop)


@every_kind
@every_type
def test_writing_what_was_read_changes_nothing(pad, flip, dtype):
    view, canvas, index = drawn(pad, flip)
    canvas = canvas.to(dtype)
    before = canvas.clone()
    view.write(canvas, index, view.read(canvas, index))
    assert torch.equal(canvas, before)


@every_kind
@every_type
def test_reading_gives_what_was_written(pad, flip, dtype):
    view, canvas, index = drawn(pad, flip)
    canvas = canvas.to(dtype)
    value = (torch.rand((len(index), 3, *SIZE), generator=seeded(9)) * 255).to(dtype)
    view.write(canvas, index, value)
    assert torch.equal(view.read(canvas, index), value)


@every_kind
def test_writing_leaves_all_else_alone(pad, flip):
    view, canvas, index = drawn(pad, flip)
    before = canvas.clone()
    view.write(canvas, index, torch.full((len(index), 3, *SIZE), -1))
    assert (canvas == -1).sum() == len(index) * 3 * SIZE[0] * SIZE[1]
    assert torch.equal(canvas[canvas != -1], before[canvas != -1])


def test_without_pad_and_flip_it_is_the_identity():
    view, canvas, index = drawn(0, False)
    assert torch.equal(view.read(canvas, index), canvas[index])


def test_draws_cover_all_places_evenly():
    n, pad = 3000, 1
    view = CropFlip.draw(n, SIZE, pad, True, seeded())
    mirrored = view.columns[:, 0] > view.columns[:, -1]
    assert mirrored.float().mean().item() == pytest.approx(1 / 2, abs=0.04)
    tops, lefts = view.rows[:, 0], view.columns.amin(dim=1)
    places = torch.bincount(tops * 3 + lefts, minlength=9)
    assert len(places) == 9
    assert (places / n - 1 / 9).abs().max() < 0.03


def test_draw_is_a_function_of_the_generator():
    first, second, other = (CropFlip.draw(9, SIZE, 2, True, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.columns, second.columns)
    assert not (torch.equal(first.rows, other.rows) and torch.equal(first.columns, other.columns))
