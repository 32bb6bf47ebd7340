"""Data sets for the theory of adversarial training: separable with a margin, and points of the unit sphere."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.core import registry
from bench.core.errors import UserError
from bench.datasets.arrays import Arrays, check_arrays

Points = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
TRIES = 1000  # largest number of draws of one point of the sphere


def separable_points(
    rng: np.random.Generator, n: int, *, dim: int, radius: float, gamma: float, farthest: float | None = None
) -> tuple[Points, Labels, Points]:
    """x (n, dim) with |x| <= radius, y (n,) of 0 and 1, and the unit vector v with (2y - 1) v^T x >= gamma.

    Assumption 3.3 of reflected-loss.txt. |v^T x| is uniform in [gamma, farthest]; the rest of x is uniform in the
    remaining ball. farthest: none means the radius; gamma puts all points at the margin, where they are hardest.
    """
    farthest = radius if farthest is None else farthest
    if not (0 < gamma <= farthest <= radius and n >= 1 and dim >= 2):
        raise UserError("separable data need 0 < gamma <= farthest <= radius, dim >= 2 and n >= 1")
    v = _unit(rng.standard_normal((1, dim)))
    y = rng.integers(0, 2, n)
    along = rng.uniform(gamma, farthest, (n, 1))
    rest = rng.standard_normal((n, dim))
    rest = _unit(rest - (rest @ v.T) * v)
    length = np.sqrt(radius**2 - along**2) * rng.uniform(0, 1, (n, 1)) ** (1 / (dim - 1))
    return (2 * y[:, None] - 1) * along * v + length * rest, y, v[0]


def sphere_points(rng: np.random.Generator, n: int, *, dim: int, distance: float) -> Points:
    """Points (n, dim) of the unit sphere, any two of which are more than `distance` apart.

    With distance = 2 delta, the balls of radius delta around them are disjoint, so any labels are compatible with the
    perturbations (convergence-overparametrized.txt, definition 3.1 and section 6).
    """
    points = np.empty((0, dim))
    for _ in range(TRIES * n):
        if len(points) == n:
            break
        point = _unit(rng.standard_normal((1, dim)))
        if (np.linalg.norm(points - point, axis=1) > distance).all():
            points = np.concatenate([points, point])
    if len(points) < n:
        raise UserError(f"{n} points of the sphere in {dim} dimensions are not {distance:g} apart; ask for fewer")
    return points


def _unit(x: Points) -> Points:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@registry.dataset("separable")
def separable(
    data_dir: Path | None = None,
    *,
    side: int = 4,
    gamma: float = 0.3,
    train: int = 512,
    test: int = 512,
    seed: int = 0,
) -> Arrays:
    """Two linearly separable classes with a margin, as images: reflected-loss.txt, assumption 3.3.

    The pixels are 0.5 + x / 2 for points x of length at most 1, in 256 levels. In [0, 1] the distance of each image to
    the hyperplane between the classes is gamma / 2, up to the rounding of its pixels.

    side: height and width of the images, so the dimension is its square. gamma: the margin, 0 to 1. train, test: the
    number of images. seed: of all random numbers.
    """
    if min(side, 2) < 2 or min(train, test) < 2 or seed < 0:
        raise UserError("'separable' takes side >= 2, train and test >= 2 and seed >= 0")
    rng = np.random.default_rng(seed)
    x, y, _ = separable_points(rng, train + test, dim=side**2, radius=1.0, gamma=gamma)
    return _as_images("separable", x, y, train)


@registry.dataset("sphere")
def sphere(
    data_dir: Path | None = None,
    *,
    side: int = 4,
    distance: float = 0.4,
    train: int = 64,
    test: int = 64,
    seed: int = 0,
) -> Arrays:
    """Points of the unit sphere with random labels, as images: convergence-overparametrized.txt, section 3.3.

    The pixels are 0.5 + x / 2 for points x of length 1, in 256 levels; any two points are more than `distance` apart.
    The labels are random, so test images can only be fitted, not predicted.

    side: height and width of the images. distance: the least distance of two points x. train, test: the number of
    images. seed: of all random numbers.
    """
    if min(side, 2) < 2 or min(train, test) < 2 or seed < 0:
        raise UserError("'sphere' takes side >= 2, train and test >= 2 and seed >= 0")
    rng = np.random.default_rng(seed)
    x = sphere_points(rng, train + test, dim=side**2, distance=distance)
    return _as_images("sphere", x, rng.permutation(np.arange(len(x)) % 2), train)


def _as_images(name: str, x: Points, y: Labels, train: int) -> Arrays:
    side = math.isqrt(x.shape[1])
    images = np.rint(255 * (0.5 + x / 2)).astype(np.uint8).reshape(-1, side, side, 1)
    parts = {"x_train": images[:train], "y_train": y[:train], "x_test": images[train:], "y_test": y[train:]}
    return check_arrays(name, parts)


@registry.dataset("nearest-seed")
def nearest_seed(
    data_dir: Path | None = None, *, seeds: int = 10, train: int = 10_000, test: int = 1000, seed: int = 0
) -> Arrays:
    """Points of the unit square, each with the class of the nearest of some seeds, as images of 1x2 pixels.

    Thesis, section 3.2.2: the data of figure 3.3. Points and seeds are uniform; points are rounded to 256 levels.

    seeds: the number of seeds, each of a class of its own. train, test: the number of points. seed: of all random
    numbers.
    """
    if seeds < 2 or min(train, test) < seeds or seed < 0:
        raise UserError("'nearest-seed' takes seeds >= 2, train and test of at least as many, and seed >= 0")
    rng = np.random.default_rng(seed)
    centers = rng.uniform(size=(seeds, 2))
    points = np.rint(255 * np.concatenate([centers, rng.uniform(size=(train + test - seeds, 2))])).astype(np.uint8)
    y = np.square(points[:, None] / 255 - centers).sum(axis=2).argmin(axis=1)
    images = points.reshape(-1, 1, 2, 1)
    parts = {"x_train": images[:train], "y_train": y[:train], "x_test": images[train:], "y_test": y[train:]}
    return check_arrays("nearest-seed", parts)
