"""Identifies a published checkpoint from the words in its file name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import UserError

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
FIELDS = {
    "dataset": {"mnist": "mnist", "cifar": "cifar10", "cifar10": "cifar10"},
    "model": {"fc1": "fc1", "cnn": "cnn"},
    "activation": {
        "relu": "", "sigmoid": ":activation=sigmoid", "sigd": ":activation=sigmoid", "tanh": ":activation=tanh",
    },
    "norm": {"l1": "Linf", "linf": "Linf", "l2": "L2"},
}  # fmt: skip


@dataclass(frozen=True)
class CheckpointKey:
    """Data set, model (a spec), norm and training method of a checkpoint: its row in a paper's table."""

    dataset: str
    model: str
    norm: str
    method: str


def checkpoint_key(path: Path) -> CheckpointKey | None:
    """The key of a checkpoint, from the words in its name and its folders' names; None if they do not suffice.

    Words are separated by _ and -: a data set (mnist, cifar), a model (fc1, cnn), an activation (sigmoid or sigd, tanh;
    default ReLU), a norm (l1 and linf mean Linf; l2). The remaining words of the file's own name are the training
    method: `c-per`, which is L-PER, in mnist_fc1_l1_c-per.ckpt. Folders count too: tanh_linf/mnist_fc1/tanh_i-per+at.
    """
    fields = {"activation": ""}
    method: list[str] = []
    for part in (*path.parent.parts, path.stem):
        method = []
        for word in re.split(r"[_-]", part.lower()):
            for name, words in FIELDS.items():
                if word in words:
                    fields[name] = words[word]
                    break
            else:
                method.append(word)
    if len(fields) < 4 or not method:
        return None
    return CheckpointKey(
        fields["dataset"], fields["model"] + fields["activation"], fields["norm"], method_of("-".join(method))
    )


def method_of(name: str) -> str:
    """The canonical name of a method in a table's row or a file name: c-per and L-PER are l-per, perat is per-at."""
    plain = name.lower().replace("+", "-").replace("perat", "per-at")
    return re.sub("^c-per", "l-per", re.sub("^c-ibp", "crown-ibp", plain))


def find_checkpoints(folder: Path, named: Sequence[str] = ()) -> dict[CheckpointKey, Path]:
    """The checkpoints in a folder and its subfolders.

    named: FILE=NAME for files with other names. UserError if the folder or a file does not exist, or if two
    checkpoints have the same key.
    """
    if not folder.is_dir():
        raise UserError(f"checkpoint folder {folder} does not exist; give another with --checkpoints")
    names = {path: path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES}
    for text in named:
        file, equals, name = text.rpartition("=")
        if not equals or checkpoint_key(Path(name)) is None:
            raise UserError(f"named {text}: write FILE=NAME, as in a.pt=mnist_fc1_l1_kw or a.pt=mnist_fc1_tanh_l2_at")
        if not Path(file).is_file():
            raise UserError(f"named {text}: file {file} does not exist; give a file of weights")
        names[Path(file)] = Path(name)
    checkpoints: dict[CheckpointKey, Path] = {}
    for path, name_of in names.items():
        key = checkpoint_key(name_of)
        if key is None:
            continue
        if key in checkpoints:
            raise UserError(f"{checkpoints[key]} and {path} are both {name_of.stem} by their names; keep one")
        checkpoints[key] = path
    return checkpoints
