"""Building blocks of the corruptions (corruptions.py): kernels, warps and edges, without OpenCV or ImageMagick.

Images are float64 (H,W,C) in [0, 1], layers (H,W). Borders are as in the public recipe: repeated for Gaussian and
motion blur, mirrored for disks and warps.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from scipy import ndimage

Image = npt.NDArray[np.float64]
LUMA = np.array([0.299, 0.587, 0.114])  # the weights of red, green and blue in a grey image


def grey(image: Image) -> Image:
    """The brightness (H,W,1)."""
    return image if image.shape[2] == 1 else (image @ LUMA)[..., None]


def in_colours_of(image: Image, rgb: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """A colour of 0 to 255, scaled to [0, 1]: three numbers, or its brightness for a grey image."""
    colour = np.array(rgb) / 255
    return colour if image.shape[2] == 3 else np.array([colour @ LUMA])


def gaussian(image: Image, sigma: float) -> Image:
    """Gaussian blur of an image (H,W,C) or a layer (H,W), in pixels."""
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0)[: image.ndim], mode="nearest"))


def disk(image: Image, radius: float, sigma: float) -> Image:
    """The mean over a disk whose border is softened by a Gaussian of 3 x 3 pixels."""
    reach = int(radius) + 2
    away = np.arange(-reach, reach + 1)
    kernel = (away[:, None] ** 2 + away**2 <= radius**2).astype(np.float64)
    soft = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        kernel = ndimage.convolve1d(kernel, soft / soft.sum(), axis=axis, mode="mirror")
    return np.asarray(ndimage.correlate(image, (kernel / kernel.sum())[..., None], mode="mirror"))


def motion(image: Image, radius: int, sigma: float, degrees: float) -> Image:
    """ImageMagick's motion blur: one half of a Gaussian along a direction, in steps of whole pixels."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down, right = (np.ceil(steps * part - 0.5).astype(int) for part in (_sine(degrees), _sine(degrees + 90)))
    rows, columns = np.indices(image.shape[:2])
    total = np.zeros_like(image)
    for weight, dy, dx in zip(weights / weights.sum(), down, right, strict=True):
        total += weight * image[(rows + dy).clip(0, rows.max()), (columns + dx).clip(0, columns.max())]
    return total


def _sine(degrees: float) -> float:
    return float(np.sin(np.deg2rad(degrees)))


def zoomed(image: Image, factor: float) -> Image:
    """The middle of an image (H,W,C), enlarged to its size."""
    height, width = image.shape[:2]
    rows, columns = (int(np.ceil(side / factor)) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    large = ndimage.zoom(image[top : top + rows, left : left + columns], (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width])


def plasma(side: int, decay: float, random: np.random.Generator) -> Image:
    """Clouds (S,S) in [0, 1] by the diamond-square algorithm on a torus; S is the next power of two from `side`."""
    size = 1 << (side - 1).bit_length()
    clouds, step, wobble = np.zeros((size, size)), size, 100.0

    def mean_of_four(total: Image) -> Image:
        return total / 4 + wobble * random.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = clouds[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        clouds[half::step, half::step] = mean_of_four(pairs + np.roll(pairs, -1, axis=1))
        centres = clouds[half::step, half::step]
        clouds[::step, half::step] = mean_of_four(
            centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        )
        clouds[half::step, ::step] = mean_of_four(
            centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        )
        step, wobble = half, wobble / decay
    clouds -= clouds.min()
    return clouds / clouds.max()


def warped(image: Image, move: npt.NDArray[np.float64]) -> Image:
    """An image under the affine map that moves three points by `move` (3,2).

    The points are corners of a square around the middle, of two thirds of the shorter side. Moves are (column, row).
    """
    middle, third = np.array(image.shape[1::-1]) // 2, min(image.shape[:2]) // 3
    before = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + move
    homogeneous = np.concatenate([after, np.ones((3, 1))], axis=1)
    back = np.linalg.solve(homogeneous, before.astype(np.float64))  # rows x, y, 1 -> column, row of the source
    rows, columns = np.indices(image.shape[:2])
    source = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back
    return sampled(image, source[..., 1], source[..., 0], "mirror")


def sampled(image: Image, rows: Image, columns: Image, border: str) -> Image:
    """The image at fractional positions (H,W), linearly interpolated."""
    channels = [
        ndimage.map_coordinates(image[..., c], (rows, columns), order=1, mode=border) for c in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)


def as_bytes(image: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Values in [0, 1] as 0 to 255, clipped, and rounded down as in the public recipe."""
    return np.asarray(np.clip(image, 0, 1) * 255).astype(np.uint8)


def edges(layer: npt.NDArray[np.uint8], low: float, high: float) -> npt.NDArray[np.bool_]:
    """Canny's edges (H,W) of a layer of 0 to 255: maxima of the gradient above `high`, or above `low` next to one."""
    grown = np.pad(layer.astype(np.float64), 1, mode="edge")
    dy, dx = (ndimage.sobel(grown, axis=axis)[1:-1, 1:-1] for axis in (0, 1))
    size = np.abs(dx) + np.abs(dy)
    around = np.pad(size, 1)
    sector = np.round(np.rad2deg(np.arctan2(dy, dx)) / 45).astype(int) % 4  # of the gradient: right, down right, ...
    rows, columns = np.indices(size.shape) + 1
    down, right = np.array([0, 1, 1, 1])[sector], np.array([1, 1, 0, -1])[sector]
    thin = (size > around[rows - down, columns - right]) & (size >= around[rows + down, columns + right])
    parts, _ = ndimage.label(thin & (size > low), np.ones((3, 3)))
    return np.asarray((parts > 0) & np.isin(parts, parts[thin & (size > high)]))


def equalized(layer: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A layer of 0 to 255 whose histogram is spread over all values; unchanged if it has one value."""
    counts = np.bincount(layer.ravel(), minlength=256)
    first = counts[counts > 0][0]
    if first == layer.size:
        return layer
    ranks = (counts.cumsum() - first).clip(min=0) * (255 / (layer.size - first))
    return np.round(ranks).astype(np.uint8)[layer]


def from_pillow(image: Pillow.Image) -> Image:
    array = np.asarray(image, dtype=np.float64) / 255
    return array[..., None] if array.ndim == 2 else array


def to_pillow(image: Image) -> Pillow.Image:
    """Convert to 8 bits per channel; images that were converted from 0 to 255 are restored exactly."""
    pixels = np.round(image * 255).astype(np.uint8)
    return Pillow.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def through_jpeg(image: Image, quality: int) -> Image:
    buffer = io.BytesIO()
    to_pillow(image).save(buffer, "JPEG", quality=quality)
    return from_pillow(Pillow.open(buffer))
