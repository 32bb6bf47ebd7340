"""Which of somebody's checkpoints is which: from the words in their file names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import UserError

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
DATASETS = {"mnist": "mnist", "cifar": "cifar10", "cifar10": "cifar10"}
MODELS = ("fc1", "cnn")
ACTIVATIONS = {"relu": "", "sigmoid": ":activation=sigmoid", "sigd": ":activation=sigmoid", "tanh": ":activation=tanh"}
NORMS = {"l1": "Linf", "linf": "Linf", "l2": "L2"}


@dataclass(frozen=True)
class Place:
    """Where a checkpoint stands in a table: its data set, model (a spec), norm and training method."""

    dataset: str
    model: str
    norm: str
    method: str


def place_of(path: Path) -> Place | None:
    """What a checkpoint is, from the words in its name and its folders'; None where they do not say it all.

    Words are parted by _ and -. A data set (mnist, cifar), a model (fc1, cnn), an activation (sigmoid or sigd, tanh;
    else ReLU), a norm (l1 and linf are Linf; l2); what is left of the file's own name is the training: in
    mnist_fc1_l1_c-per.ckpt `c-per`, which is L-PER. So tanh_linf/mnist_fc1/tanh_i-per+at.ckpt is known too.
    """
    found = {"activation": ""}
    left: list[str] = []
    for part in (*path.parent.parts, path.stem):
        left = []
        for word in re.split(r"[_-]", part.lower()):
            if word in DATASETS:
                found["dataset"] = DATASETS[word]
            elif word in MODELS:
                found["model"] = word
            elif word in ACTIVATIONS:
                found["activation"] = ACTIVATIONS[word]
            elif word in NORMS:
                found["norm"] = NORMS[word]
            else:
                left.append(word)
    if len(found) < 4 or not left:
        return None
    return Place(found["dataset"], found["model"] + found["activation"], found["norm"], method_of("-".join(left)))


def method_of(name: str) -> str:
    """One spelling for a method, from a table's row or a file's name: c-per and L-PER are l-per, perat is per-at."""
    plain = name.lower().replace("+", "-").replace("perat", "per-at")
    return re.sub("^c-per", "l-per", re.sub("^c-ibp", "crown-ibp", plain))


def find_checkpoints(folder: Path, named: Sequence[str] = ()) -> dict[Place, Path]:
    """The checkpoints of a folder and its sub-folders by what they are.

    named: FILE=NAME for files that are called otherwise. UserError where there is no such folder or file, or two
    checkpoints are of one place.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} of checkpoints; name one with --checkpoints")
    paths = {path: path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES}
    for words in named:
        file, equals, name = words.rpartition("=")
        if not equals or place_of(Path(name)) is None:
            raise UserError(f"named {words}: write FILE=NAME, as in a.pt=mnist_fc1_l1_kw or a.pt=mnist_fc1_tanh_l2_at")
        if not Path(file).is_file():
            raise UserError(f"named {words}: there is no file {file}; give one of weights")
        paths[Path(file)] = Path(name)
    found: dict[Place, Path] = {}
    for path, name_of in paths.items():
        place = place_of(name_of)
        if place is None:
            continue
        if place in found:
            raise UserError(f"{found[place]} and {path} are both {name_of.stem} by their names; keep one")
        found[place] = path
    return found
