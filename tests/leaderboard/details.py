"""What a page compares of a made-up board, with images, for tests of what shows it."""

import base64
import io
import itertools
import random

import numpy as np
from PIL import Image

from leaderboard.board_comparisons import Comparisons, Outcomes, Pair, Untested
from leaderboard.page import SuiteDetails
from leaderboard.witness_images import Images, Witnesses

EXAMPLES, SIDE, ACROSS = 360, 8, 19


def bits(flags):
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def robust_of(row, seed):
    """Which examples a seed gets right: the first ones for most seeds and entries."""
    rng = np.random.default_rng([seed, len(row.name), round(1e6 * row.attacked.acc)])
    return rng.random(EXAMPLES) < np.linspace(1.2, 0.1, EXAMPLES)


def details(board, untested=()):
    """untested: pairs of places among the entries that were measured."""
    rng = random.Random(0)
    rows = [row for row in board.rows if row.seeds]
    outcomes = tuple(
        Outcomes(
            name=row.name, seeds=tuple(seed.seed for seed in row.seeds),
            robust=tuple(bits(robust_of(row, seed.seed)) for seed in row.seeds),
            certified=tuple(bits(robust_of(row, seed.seed) & (np.arange(EXAMPLES) < 40)) for seed in row.seeds),
        )
        for row in rows
    )  # fmt: skip
    pairs = []
    for a, b in itertools.combinations(range(len(rows)), 2):
        if (a, b) in untested:
            continue
        for metric in ("clean", "robust", "certified"):
            difference = rng.uniform(-0.05, 0.3)
            ranks = (0.02, int(difference > 0.1)) if metric == "robust" else ()
            low, high = difference - 0.1, difference + 0.1
            pairs.append(Pair(a, b, metric, EXAMPLES, difference, low, high, 0.01, "t over seeds", 7, *ranks))
    return SuiteDetails(
        comparisons=Comparisons(
            suite=board.suite, labels=tuple(i % 10 for i in range(EXAMPLES)), outcomes=outcomes, pairs=tuple(pairs),
            untested=tuple(Untested(a, b, "one of them is a single seed") for a, b in untested),
        ),
        **_images(board.suite, rows),
    )  # fmt: skip


def _images(suite, rows):
    """Witnesses of the first two entries, for what their first seed gets wrong."""
    witnesses, files = [], {f"images/{suite}/originals.png": _png(1)}
    for row in rows[:2]:
        index = tuple(np.flatnonzero(~robust_of(row, 0)).tolist())
        file = f"images/{suite}/{row.name}.png"
        files[file] = _png(2)
        witnesses.append(
            Witnesses(name=row.name, file=file, index=index, source=(0,) * len(index), sources=("pgd-50, seed 0",))
        )
    images = Images(
        suite=suite, originals=f"images/{suite}/originals.png", width=SIDE, height=SIDE, across=ACROSS, shown=EXAMPLES,
        scale="from -eps (black) to eps (white)", witnesses=tuple(witnesses),
    )  # fmt: skip
    return {"images": images, "files": files}


def _png(parts):
    pixels = np.random.default_rng(parts).integers(0, 255, (19 * SIDE * parts, ACROSS * SIDE), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
