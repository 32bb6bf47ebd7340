"""The images of the page: the test examples of a suite, and the published adversarial examples of each entry.

A sheet is one PNG with a tile for each example, in rows of `across` tiles. The sheet of the originals has one part. The
sheet of an entry has two parts, one below the other: the adversarial examples, and their differences from the
originals. Tiles without an adversarial example are black.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core.example_table import threat_of
from bench.core.files import read_arrays, sha256
from bench.core.record_files import WITNESSES
from bench.core.records import Artifact
from leaderboard.published_results import CONTESTS, Entry, EvaluatedRun

MOST_VALUES = 2**20  # limit of pixel values per sheet; further examples are not shown
GREY = 127.5
Pixels = npt.NDArray[np.uint8]


class Witnesses(msgspec.Struct, frozen=True, kw_only=True):
    """The sheet of an entry.

    index: the examples that have an adversarial example, from the first seed that has one. source: for each, the
    position of its source in `sources`.
    """

    name: str
    file: str  # relative to the page
    index: tuple[int, ...]
    source: tuple[int, ...]
    sources: tuple[str, ...]  # `pgd-50, seed 0`


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """The sheets of a suite. width, height: of a tile; shown: the first examples, which have a tile."""

    suite: str
    originals: str  # relative to the page
    width: int
    height: int
    across: int
    shown: int
    scale: str  # of the differences, as text for readers
    witnesses: tuple[Witnesses, ...]


@dataclass(frozen=True)
class Published:
    """The files of published adversarial examples, by their SHA-256: those in a folder, or beside the records."""

    files: Mapping[str, Path]

    @classmethod
    def find(cls, folder: Path | None, entries: Sequence[Entry]) -> "Published":
        """Find files beside the records and below `folder`; ignore files that no record or contest refers to."""
        runs = [run for entry in entries for run in entry.runs]
        wanted = {
            file.sha256
            for run in runs
            for file in (run.record.artifacts["witnesses"], *(c.witnesses for c in run.contests))
        }
        beside = [run.folder / WITNESSES for run in runs]
        beside += [run.folder / CONTESTS / Path(str(file.path)).name for run in runs for file in _of_contests(run)]
        paths = [path for path in beside if path.is_file()]
        paths += [] if folder is None else sorted(folder.rglob("*.npz"))
        return cls({name: path for path in paths if (name := sha256(path)) in wanted})

    def of(self, witnesses: Artifact) -> Path | None:
        return self.files.get(witnesses.sha256)


def _of_contests(run: EvaluatedRun) -> list[Artifact]:
    """The adversarial examples of contests that are stored beside the run."""
    return [contest.witnesses for contest in run.contests if contest.witnesses.path is not None]


def draw_images(
    suite: str, entries: Sequence[Entry], published: Published, x_test: npt.NDArray[Any]
) -> tuple[Images, dict[str, bytes]]:
    """Draw the sheets of a suite; return them and the PNG files by name. x_test (N,H,W,C) uint8, 1 or 3 channels."""
    n = max(len(run.clean) for entry in entries for run in entry.runs)
    shown = max(1, min(n, MOST_VALUES // math.prod(x_test.shape[1:])))
    originals = np.asarray(x_test[:shown])
    across = math.ceil(math.sqrt(shown))
    name = f"images/{suite}/originals.png"
    files, witnesses = {name: _png(_sheet(originals, across))}, []
    norm = entries[0].runs[0].record.threat.norm
    for entry in entries:
        found = dict(_first_witnesses(entry, published, shown))
        if found:
            file = f"images/{suite}/{entry.name}.png"
            files[file] = _png(_entry_sheet(found, originals, across, entry.runs[0].record.threat.eps, norm))
            sources = tuple(dict.fromkeys(source for _, source in found.values()))
            index = tuple(sorted(found))
            source = tuple(sources.index(found[i][1]) for i in index)
            witnesses.append(Witnesses(name=entry.name, file=file, index=index, source=source, sources=sources))
    height, width = originals.shape[1:3]
    scale = "from -eps (black) to eps (white)" if norm == "Linf" else "each scaled to its largest change"
    images = Images(
        suite=suite, originals=name, width=width, height=height, across=across, shown=shown, scale=scale,
        witnesses=tuple(witnesses),
    )  # fmt: skip
    return images, files


def _first_witnesses(
    entry: Entry, published: Published, shown: int
) -> Iterator[tuple[int, tuple[npt.NDArray[np.float32], str]]]:
    """Example -> its adversarial example (C,H,W) under the threat model of the entry, and its source."""
    for run in reversed(entry.runs):  # a dict keeps the last one
        for contest in run.contests:
            if (path := published.of(contest.witnesses)) is not None:
                arrays = read_arrays(path)
                for example, point in zip(arrays["index"].tolist(), arrays["x_adv"], strict=True):
                    if example < shown and example in contest.broken:
                        yield example, (point, f"contest by {contest.by}, seed {run.record.seed}")
        path = published.of(run.record.artifacts["witnesses"])
        if path is None:
            continue
        arrays = read_arrays(path)
        own = {str(source) for source in np.unique(arrays["attack"])}
        own = {source for source in own if threat_of(source, run.record.threat) == run.record.threat}
        columns = (arrays["index"].tolist(), arrays["attack"].tolist(), arrays["x_adv"])
        for example, source, point in zip(*columns, strict=True):
            if example < shown and source in own:
                yield example, (point, f"{source}, seed {run.record.seed}")


def _entry_sheet(
    found: Mapping[int, tuple[npt.NDArray[np.float32], str]], originals: Pixels, across: int, eps: float, norm: str
) -> Pixels:
    adversarial, difference = np.zeros_like(originals), np.zeros_like(originals)
    for example, (point, _) in found.items():
        image = np.moveaxis(point.astype(np.float64), 0, -1)
        change = image - originals[example] / 255
        largest = eps if norm == "Linf" else max(float(np.abs(change).max()), 1e-12)
        adversarial[example] = _levels(255 * image)
        difference[example] = _levels(GREY + GREY * change / largest)
    return np.concatenate([_sheet(adversarial, across), _sheet(difference, across)])


def _levels(values: npt.NDArray[np.float64]) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _sheet(images: Pixels, across: int) -> Pixels:
    """Arrange images (N,H,W,C) as one image (rows H, across W, C)."""
    n, height, width, channels = images.shape
    rows = math.ceil(n / across)
    full = np.zeros((rows * across, height, width, channels), np.uint8)
    full[:n] = images
    tiles = full.reshape(rows, across, height, width, channels).swapaxes(1, 2)
    return tiles.reshape(rows * height, across * width, channels)


def _png(pixels: Pixels) -> bytes:
    from PIL import Image  # here, because boards without images do not need it

    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(out, "PNG", optimize=True)
    return out.getvalue()
