"""The common corruptions of CIFAR-10-C, generated here, except `frost`, which needs pictures of frost.

Hendrycks and Dietterich, 2019, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations; the
parameters are those of the authors' public recipe for CIFAR-10-C (ImageNet-C/create_c/make_cifar_c.py of the repository
hendrycks/robustness), in pixels of 32 x 32 images. Other sizes use the same numbers of pixels, except in
`elastic_transform`, whose lengths are shares of a side.

A corruption is a function (image, severity, random) -> image under `@registry.corruption(NAME)`: image float64 (H,W,C)
in [0, 1] with one or three channels; severity 1 to 5; random a generator. Values are clipped to [0, 1] and rounded down
to 8 bits, as in the recipe.

The recipe draws from NumPy's global generator without a seed, so its files are other draws of the same corruptions. It
uses OpenCV, ImageMagick and scikit-image; here the same operations are computed with SciPy and Pillow, and distances
and edges of `spatter` and the warp of `elastic_transform` differ from OpenCV's by its rounding.
"""

import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from scipy import ndimage

from bench.core import registry
from bench.core.errors import UserError
from bench.core.failures import failures_of
from bench.datasets.corruption_filters import (
    Image,
    as_bytes,
    disk,
    edges,
    equalized,
    from_pillow,
    gaussian,
    grey,
    in_colours_of,
    motion,
    plasma,
    sampled,
    through_jpeg,
    to_pillow,
    warped,
    zoomed,
)

# the fifteen of the paper, over which accuracies are averaged; CIFAR-10-C has four more
BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
Corruption = Callable[[Image, int, np.random.Generator], Image]


def corrupted(
    images: npt.NDArray[np.uint8], index: npt.NDArray[np.int64], name: str, severity: int, *, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Images uint8 (N,H,W,C) under a registered corruption; each depends only on `seed` and its own `index` (N,)."""
    corruption: Corruption = registry.corruption.get(name)
    result = np.empty_like(images)
    for row, (image, number) in enumerate(zip(images, index.tolist(), strict=True)):
        random = np.random.default_rng([seed, zlib.crc32(name.encode()), severity, number])
        with failures_of(f"corruption '{name}'"):
            found = np.asarray(corruption(image / 255.0, severity, random))
        if found.shape != image.shape:
            raise UserError(f"corruption '{name}' returns {found.shape} for an image {image.shape}")
        if not np.isfinite(found).all():
            raise UserError(f"corruption '{name}' returns values that are not finite numbers")
        result[row] = as_bytes(found + 1e-9)  # a value of k / 255 stays k
    return result


@registry.corruption("gaussian_noise")
def gaussian_noise(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Gaussian noise on each value."""
    return image + (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1] * random.normal(size=image.shape)


@registry.corruption("shot_noise")
def shot_noise(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Poisson noise, as of few photons."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    return random.poisson(image * photons) / photons


@registry.corruption("impulse_noise")
def impulse_noise(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Salt and pepper: some values become 0 or 1."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    hit, salt = random.random(image.shape) < share, random.random(image.shape) < 0.5
    return np.where(hit, salt.astype(np.float64), image)


@registry.corruption("speckle_noise")
def speckle_noise(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Gaussian noise in proportion to each value."""
    return image * (1 + (0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1] * random.normal(size=image.shape))


@registry.corruption("gaussian_blur")
def gaussian_blur(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Gaussian blur."""
    return gaussian(image, (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1])


@registry.corruption("glass_blur")
def glass_blur(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Blur, pixels replaced by near ones, blur.

    The recipe intends to swap pixels, but in effect a pixel becomes a copy of one up to one row above or one column to
    the left; this function does the same. It leaves out the first two rows and columns.
    """
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity - 1]
    image = as_bytes(gaussian(image, sigma)) / 255
    rows, columns = np.meshgrid(*(np.arange(2, side) for side in image.shape[:2]), indexing="ij")
    for _ in range(rounds):
        up, left = random.integers(0, 2, (2, *rows.shape))
        image[2:, 2:] = image[rows - up, columns - left]
    return gaussian(image, sigma)


@registry.corruption("defocus_blur")
def defocus_blur(image: Image, severity: int, random: np.random.Generator) -> Image:
    """The blur of a lens: the mean over a disk."""
    return disk(image, *((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1])


@registry.corruption("motion_blur")
def motion_blur(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Blur along a random direction."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    return motion(image, radius, sigma, random.uniform(-45, 45))


@registry.corruption("zoom_blur")
def zoom_blur(image: Image, severity: int, random: np.random.Generator) -> Image:
    """The mean of the image and its enlargements, by up to a quarter."""
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], 0.01)
    return (image + sum(zoomed(image, float(factor)) for factor in factors)) / (len(factors) + 1)


@registry.corruption("fog")
def fog(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Clouds are added, and the whole is scaled to the brightness that the image had."""
    amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    height, width, _ = image.shape
    clouds = plasma(max(height, width), decay, random)[:height, :width, None]
    return (image + amount * clouds) * image.max() / (image.max() + amount)


@registry.corruption("snow")
def snow(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Flakes in motion, on a paler image."""
    mean, spread, zoom, least, radius, sigma, keep = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity - 1]
    flakes = zoomed(random.normal(mean, spread, (*image.shape[:2], 1)), zoom)
    flakes = as_bytes(np.where(flakes < least, 0.0, flakes)) / 255
    flakes = as_bytes(motion(flakes, int(radius), sigma, random.uniform(-135, -45))) / 255
    pale = keep * image + (1 - keep) * np.maximum(image, grey(image) * 1.5 + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


@registry.corruption("spatter")
def spatter(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Drops of water, and of mud from severity 4."""
    mean, spread, sigma, least, amount = (
        (0.62, 0.1, 0.7, 0.7, 0.5),
        (0.65, 0.1, 0.8, 0.7, 0.5),
        (0.65, 0.3, 1, 0.69, 0.5),
        (0.65, 0.1, 0.7, 0.69, 0.6),
        (0.65, 0.1, 0.5, 0.68, 0.6),
    )[severity - 1]
    liquid = gaussian(random.normal(mean, spread, image.shape[:2]), sigma)
    liquid = np.where(liquid < least, 0.0, liquid)
    if severity >= 4:
        mud = gaussian((liquid > least).astype(np.float64), amount)
        mud = np.where(mud < 0.8, 0.0, mud)[..., None]
        return image * (1 - mud) + mud * in_colours_of(image, (63, 42, 20))
    layer = as_bytes(liquid)
    away = ndimage.distance_transform_edt(~edges(layer, 50, 150)).clip(max=20)
    relief = equalized(ndimage.uniform_filter(away, 3, mode="mirror").astype(np.uint8)).astype(np.float64)
    relief = ndimage.correlate(relief, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror").clip(0, 255)
    water = layer * np.round(ndimage.uniform_filter(relief, 3, mode="mirror"))
    water = amount * water / max(float(water.max()), 1.0)
    return image + water[..., None] * in_colours_of(image, (175, 238, 238))


@registry.corruption("brightness")
def brightness(image: Image, severity: int, random: np.random.Generator) -> Image:
    """A larger value of HSV, at the same hue and saturation."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 1)
    return np.where(value > 0, image * brighter / np.where(value > 0, value, 1), brighter)


@registry.corruption("contrast")
def contrast(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Less contrast around the mean of each channel."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1] + mean


@registry.corruption("saturate")
def saturate(image: Image, severity: int, random: np.random.Generator) -> Image:
    """A smaller or larger saturation of HSV; grey pixels become reddish at severities 4 and 5. Images have colours."""
    if image.shape[2] != 3:
        raise UserError("corruption 'saturate' needs images with three channels; leave it out")
    factor, more = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    value = image.max(axis=2, keepdims=True)
    saturation = (value - image.min(axis=2, keepdims=True)) / np.where(value > 0, value, 1)
    wanted = np.clip(saturation * factor + more, 0, 1)
    ratio = wanted / np.where(saturation > 0, saturation, 1)
    reddish = value * np.concatenate([np.ones_like(wanted), 1 - wanted, 1 - wanted], axis=2)
    return np.where(saturation > 0, value - (value - image) * ratio, reddish)


@registry.corruption("jpeg_compression")
def jpeg_compression(image: Image, severity: int, random: np.random.Generator) -> Image:
    """JPEG of low quality."""
    return through_jpeg(image, (80, 65, 58, 50, 40)[severity - 1])


@registry.corruption("pixelate")
def pixelate(image: Image, severity: int, random: np.random.Generator) -> Image:
    """Fewer pixels, and back to the size."""
    share, (height, width) = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1], image.shape[:2]
    sides = (max(1, int(width * share)), max(1, int(height * share)))
    small = to_pillow(image).resize(sides, Pillow.Resampling.BOX)
    return from_pillow(small.resize((width, height), Pillow.Resampling.BOX))


@registry.corruption("elastic_transform")
def elastic_transform(image: Image, severity: int, random: np.random.Generator) -> Image:
    """A random affine map, then a random smooth displacement of the pixels."""
    side = min(image.shape[:2])
    amount, sigma, affine = (
        side * share
        for share in ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))[
            severity - 1
        ]
    )
    image = warped(image, random.uniform(-affine, affine, (3, 2)))
    right, down = (
        amount * ndimage.gaussian_filter(random.uniform(-1, 1, image.shape[:2]), sigma, mode="reflect", truncate=3)
        for _ in range(2)
    )
    rows, columns = np.indices(image.shape[:2])
    return sampled(image, rows + down, columns + right, "reflect")
