"""Images that are streamed from folders of files train as the same images in memory do."""

import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Resize

from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.image_files import ImageFiles
from bench.datasets.load import load_arrays
from bench.datasets.split import Split
from bench.models.build import build_model
from bench.testing.contracts import DefenseContract
from bench.training.loop import Loop

SIZE, CPU = 8, torch.device("cpu")


@pytest.fixture
def root(tmp_path):
    """12 + 4 images of two classes, of different sizes, in tmp_path/it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "it" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (10 + number, 12, 3), np.uint8)
                Image.fromarray(pixels if number else pixels[..., 0]).save(
                    folder / f"{number}.png"
                )  # the first is grey
    return tmp_path


def load(root, options=""):
    return load_arrays(f"image-folder:folder=it:size={SIZE}{options}", root)


def pixels_of(files, path):
    return np.asarray(files)[files.paths.tolist().index(path)]


def test_the_first_images_are_of_all_classes(root):
    arrays = load(root)
    assert arrays.shape == (3, SIZE, SIZE)
    assert isinstance(arrays.x_train, ImageFiles)
    for files, labels in ((arrays.x_train, arrays.y_train), (arrays.x_test, arrays.y_test)):
        assert labels.tolist() == [("cat", "dog").index(path.partition("/")[0]) for path in files.paths]
    assert sorted(arrays.x_train.paths) == [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(6)]
    assert sorted(arrays.y_train[:4]) == [0, 0, 1, 1]
    assert load(root).x_train.paths.tolist() == arrays.x_train.paths.tolist()
    assert (np.asarray(arrays.x_train).shape, arrays.x_train.dtype) == ((12, SIZE, SIZE, 3), np.uint8)
    first, second = (pixels_of(arrays.x_train, f"cat/{number}.png") for number in (0, 1))
    assert (first == first[..., :1]).all()
    assert not (second == second[..., :1]).all()


def test_imagenet_is_a_folder_of_its_own(root):
    (root / "it").rename(root / "imagenet")
    arrays = load_arrays(f"imagenet:size={SIZE}:classes=1+0", root)
    assert arrays.shape == (3, SIZE, SIZE)
    assert arrays.y_test.tolist() == [("dog", "cat").index(path.partition("/")[0]) for path in arrays.x_test.paths]


def test_the_centre_is_cut_out(root):
    # a uniform image with a border that resizing does not reach: 14 x 28 pixels, resized to 9 x 18
    image = np.zeros((14, 28, 3), np.uint8)
    image[:, 8:20] = 200
    Image.fromarray(image).save(root / "it" / "train" / "cat" / "0.png")
    pixels = pixels_of(load(root).x_train, "cat/0.png")
    assert (pixels[:, 1:-1] == 200).all()
    assert (pixels[:, [0, -1]] < 200).all()


def test_filters_apply_to_files(root):
    arrays, everything = load(root, ":train=8:test=3:classes=1+0"), load(root)
    assert arrays.y_train.tolist() == (1 - everything.y_train[:8]).tolist()
    assert arrays.x_test.paths.tolist() == everything.x_test.paths[:3].tolist()


@pytest.mark.parametrize("size", [(500, 334), (500, 332), (281, 500), (300, 300)])
def test_images_are_resized_and_cropped_as_by_torchvision(tmp_path, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    image.save(tmp_path / "it.png")
    wanted = CenterCrop(224)(Resize(256)(image))
    assert np.array_equal(ImageFiles(tmp_path, np.array(["it.png"], object), 224).read([0])[0], np.asarray(wanted))


def test_the_hash_changes_with_the_files(root):
    before = load(root).hash
    assert load(root).hash == before
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(root / "it" / "val" / "dog" / "0.png")
    assert load(root).hash != before


def loop_of(arrays, **settings):
    defense = DefenseContract().make("atta", epochs=2, batch_size=5, store_size=4, **settings)
    split = Split(arrays.x_train, arrays.y_train, CPU, crop=1, flip=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = build_model("small-cnn:width=2:hidden=4", arrays.shape, arrays.classes)
    return Loop(model, defense, split, ThreatModel("Linf", 0.1), seed=0)


def test_a_training_on_files_is_one_on_the_same_images_in_memory(root):
    files = load(root)
    memory = Arrays("it", np.asarray(files.x_train), files.y_train, np.asarray(files.x_test), files.y_test)
    streamed, held = loop_of(files), loop_of(memory)
    assert streamed.canvas == held.canvas == (12, 3, SIZE + 2, SIZE + 2)
    assert streamed.bank["delta"].shape == (12, 3, 4, 4)  # a smaller store
    weights = [list(loop.run()[0].state_dict().values()) for loop in (streamed, held)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_batch_is_read_ahead(root, monkeypatch):
    split = Split(load(root).x_train, load(root).y_train, CPU)
    batches = split.shuffled(4, torch.Generator().manual_seed(0))
    next(batches)
    split.canvas._ahead[1].result()
    monkeypatch.setattr(ImageFiles, "read", None)  # what comes next needs no reading
    assert next(batches, None) is not None


def test_test_images_are_evaluated(root):
    test = Split.test(load(root), CPU, 3)
    assert [len(batch) for batch in test.in_order(2)] == [2, 1]


@pytest.mark.parametrize(("change", "said"), [
    (lambda root: (root / "it" / "val" / "dog").rename(root / "it" / "val" / "wolf"), "different classes"),
    (lambda root: [file.unlink() for file in (root / "it" / "val").rglob("*.png")], "has no images"),
    (lambda root: (root / "it" / "val").rename(root / "it" / "test"), "there is no folder"),
])  # fmt: skip
def test_folders_that_do_not_fit(root, change, said):
    change(root)
    with pytest.raises(UserError, match=said):
        load(root)


def test_a_file_that_is_no_image_is_named(root):
    (root / "it" / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cat/0\.png is not a readable image"):
        np.asarray(load(root).x_train)


def test_a_damaged_image_is_named(root):
    file = root / "it" / "train" / "cat" / "1.png"
    content = file.read_bytes()
    place = content.index(b"IDAT") - 4
    empty = bytes(4) + b"tRNS" + zlib.crc32(b"tRNS").to_bytes(4)  # for which Pillow raises a ValueError
    file.write_bytes(content[:place] + empty + content[place:])
    with pytest.raises(UserError, match=r"cat/1\.png is not a readable image"):
        np.asarray(load(root).x_train)
