"""ImageNet and other data in folders of image files, which are streamed."""

from pathlib import Path
from typing import Any

from bench.core import registry
from bench.core.errors import UserError
from bench.datasets.arrays import Arrays, check_arrays, data_folder
from bench.datasets.image_files import find_image_files


@registry.dataset("image-folder")
def image_folder(data_dir: Path | None = None, *, folder: str = "images", size: int = 224) -> Arrays:
    """Images in DATA_DIR/FOLDER/train/CLASS/ and DATA_DIR/FOLDER/val/CLASS/, decoded when they are needed.

    The images are in a fixed random order, so that the first ones are a sample of all classes. Training reads one batch
    ahead. Test images are kept in memory, so select a part of them (`:test=5000`). The hash of the data covers the
    names and lengths of the files, not their contents. Images are resized and centre-cropped as in evaluations on
    ImageNet (torchvision's Resize(256) and CenterCrop(224)). The augmentation is random crops of the padded image and
    flips, as for other data sets, because stored perturbations follow these.

    folder: name of the folder. size: side of the images.
    """
    return streamed("image-folder", data_folder(data_dir) / folder, size)


@registry.dataset("imagenet")
def imagenet(data_dir: Path | None = None, *, size: int = 224) -> Arrays:
    """ImageNet in DATA_DIR/imagenet/train/CLASS/ and DATA_DIR/imagenet/val/CLASS/, streamed as an image-folder.

    It is not downloaded. ImageNet100 is `imagenet:classes=...`, or a folder of its classes (`image-folder`).

    size: side of the images.
    """
    return streamed("imagenet", data_folder(data_dir) / "imagenet", size)


def streamed(name: str, root: Path, size: int) -> Arrays:
    """The data set of the folders `train` and `val` of a folder."""
    if not 1 <= size <= 4096:
        raise UserError(f"size is {size}; it must be 1 to 4096 pixels")
    arrays: dict[str, Any] = {}
    for split, part in (("train", "train"), ("test", "val")):
        arrays[f"x_{split}"], arrays[f"y_{split}"] = find_image_files(root / part, size)
    classes = [sorted(path.name for path in (root / part).iterdir() if path.is_dir()) for part in ("train", "val")]
    if classes[0] != classes[1]:
        raise UserError(f"{root}: train and val have different classes; they must have folders of the same names")
    return check_arrays(name, arrays)
