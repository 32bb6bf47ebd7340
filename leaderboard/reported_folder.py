"""`bench leaderboard --add-reported FOLDER`: adds model_info files of RobustBench's lists, each to its suite."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core.config import CORRUPTIONS, Suite, suites
from bench.core.errors import UserError
from leaderboard.model_info import ModelInfo
from leaderboard.robustbench_exchange import import_model_info, same_eps

NORMS = ("Linf", "L2", CORRUPTIONS)  # names of the folders that hold the files


@dataclass(frozen=True)
class Imported:
    """The folders of the new entries, and why each other file was refused."""

    added: Sequence[Path]
    refused: Sequence[str]


def import_folder(folder: Path, results: Path) -> Imported:
    """Add each JSON file below `folder` to the suite of its data set, norm and eps; UserError if there is no file.

    The norm is the name of the file's folder (Linf, L2, corruptions), and the entry is named after the file.
    """
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise UserError(f"{folder} holds no model_info files (DATASET/NORM/NAME.json); give a folder that does")
    added, refused = [], []
    for path in paths:
        try:
            info, norm = ModelInfo.read(path), _norm_of(path)
            suite = suite_of(info, norm, path)
            added.append(import_model_info(path, results, suite.name, entry_name(path), norm))
        except UserError as error:
            refused.append(str(error))
    return Imported(added, refused)


def suite_of(info: ModelInfo, norm: str, path: Path) -> Suite:
    """The suite of this data set and norm, and of this eps unless it is for corruptions."""
    of_norm = [each for each in suites().values() if (each.dataset, each.norm) == (info.dataset, norm)]
    fitting = [each for each in of_norm if norm == CORRUPTIONS or same_eps(info, each)]
    if not fitting:
        have = ", ".join(f"{each.name} ({each.eps:g})" for each in of_norm) or "none"
        raise UserError(
            f"{path} is for {info.dataset}, {norm}, eps {info.eps}, and no suite is; suites of this data set and norm: "
            f"{have}; add one with --suites DIR"
        )
    return min(fitting, key=lambda each: each.name != info.dataset)  # the first, unless one is named after the data


def entry_name(path: Path) -> str:
    """`bai2023improving_edm` for Bai2023Improving_edm.json."""
    return re.sub(r"[^a-z0-9._+-]", "-", path.stem.lower())[:64]


def _norm_of(path: Path) -> str:
    if path.parent.name not in NORMS:
        raise UserError(f"{path} is in the folder '{path.parent.name}'; RobustBench's are {', '.join(NORMS)}")
    return path.parent.name
