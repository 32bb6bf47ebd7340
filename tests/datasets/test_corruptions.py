"""Each corruption on images for which its result is known, and what is true of all of them."""

from dataclasses import replace

import numpy as np
import pytest

from bench.core import registry
from bench.core.errors import UserError
from bench.core.example_table import SEVERITIES
from bench.datasets import corruption_filters as filters
from bench.datasets.corruption_sources import CorruptionSource, corruption_sources, is_published
from bench.datasets.corruptions import BENCHMARK, EXTRA, corrupted
from bench.datasets.load import load_arrays

NAMES = registry.corruption.names()


def pictures(n=3, side=32, channels=3, seed=0):
    """Smooth random images."""
    noise = np.random.default_rng(seed).random((n, side, side, channels))
    smooth = np.stack([filters.gaussian(image, 2.0) for image in noise])
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return (smooth * 255).astype(np.uint8)


def one(name, image, severity=1):
    return registry.corruption.get(name)(image, severity, np.random.default_rng(0))


def test_all_of_cifar_10_c_that_needs_no_file_is_made():
    assert set(NAMES) == {*BENCHMARK, *EXTRA} - {"frost"}
    assert len(NAMES) == 18


@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_the_seed_and_its_own_index_only(name):
    x, index = pictures(), np.array([5, 7, 9])
    all_at_once = corrupted(x, index, name, 3)
    alone = corrupted(x[1:2], index[1:2], name, 3)
    assert all_at_once.dtype == np.uint8
    assert np.array_equal(all_at_once[1], alone[0])
    again = corrupted(x, index, name, 3, seed=1)
    draws = name.endswith("noise") or name in (
        "glass_blur", "motion_blur", "snow", "fog", "spatter", "elastic_transform",
    )  # fmt: skip
    assert np.array_equal(again, all_at_once) != draws
    other = corrupted(x, index + 1, name, 3)
    assert np.array_equal(other, all_at_once) != draws


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (32, 3)])
def test_every_corruption_fits_every_size_and_changes_the_image(name, side, channels):
    if (name, channels) == ("saturate", 1):
        return
    x = pictures(2, side, channels)
    change = [np.abs(corrupted(x, np.arange(2), name, s).astype(int) - x).mean() for s in SEVERITIES]
    assert max(change) > 0.3
    assert min(change) < 80
    if name not in ("elastic_transform", "saturate", "spatter", "glass_blur", "snow", "pixelate", "fog"):
        assert change[4] > change[0]


@pytest.mark.parametrize(("function", "said"), [
    (lambda _image, _severity, _random: 1 / 0, "'mine' failed at .*division by zero"),
    (lambda image, _severity, _random: image.tolist()[:1], r"returns \(1, 8, 3\)"),
    (lambda image, _severity, _random: image * np.nan, "not finite"),
])  # fmt: skip
def test_a_corruption_of_ones_own_that_fails_is_named(function, said, monkeypatch):
    monkeypatch.setattr(type(registry.corruption), "get", lambda *_: function)
    with pytest.raises(UserError, match=said):
        corrupted(pictures(1, 8), np.arange(1), "mine", 1)


def test_corruptions_that_do_not_fit_are_refused_before_the_evaluation(monkeypatch):
    arrays = load_arrays("digits", None)
    grey_and_alpha = replace(arrays, x_test=np.repeat(arrays.x_test, 2, axis=3), x_train=arrays.x_train.repeat(2, 3))
    with pytest.raises(UserError, match="1 or 3 channels"):
        corruption_sources(["snow"], grey_and_alpha, None)
    monkeypatch.setattr(type(registry.corruption), "get", lambda *_: lambda *_: 1 / 0)
    with pytest.raises(UserError, match="'snow' failed"):
        corruption_sources(["snow"], arrays, None)


def test_a_tiny_image_keeps_a_pixel():
    assert corrupted(np.full((1, 1, 1, 3), 9, np.uint8), np.arange(1), "pixelate", 5).shape == (1, 1, 1, 3)


def test_values_that_a_corruption_leaves_are_the_same_bytes():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    found = corrupted(x, np.array([0]), "impulse_noise", 1)
    hit = found != x
    assert 0 < hit.sum() < 0.05 * x.size
    assert set(found[hit].tolist()) <= {0, 255}


def test_only_the_authors_files_of_all_fifteen_are_the_published_benchmark(tmp_path):
    of_files = [CorruptionSource(name, tmp_path / name, "0") for name in BENCHMARK]
    assert is_published(of_files)
    assert not is_published(of_files[1:])
    assert not is_published([*of_files[1:], CorruptionSource(BENCHMARK[0])])  # made here


def test_noise_has_the_parameters_of_the_recipe():
    grey = np.full((100, 100, 3), 0.5)
    assert one("gaussian_noise", grey, 3).std() == pytest.approx(0.08, rel=0.03)
    assert one("speckle_noise", grey, 5).std() == pytest.approx(0.5 * 0.2, rel=0.03)
    shot = one("shot_noise", grey, 2)
    assert shot.var() == pytest.approx(0.5 / 250, rel=0.05)
    assert np.allclose(shot * 250, np.round(shot * 250))
    impulse = one("impulse_noise", grey, 4)
    assert (impulse != 0.5).mean() == pytest.approx(0.05, rel=0.1)
    assert set(np.unique(impulse)) == {0.0, 0.5, 1.0}


def test_brightness_contrast_and_saturation_on_known_pixels():
    red = np.zeros((1, 1, 3)) + np.array([0.6, 0.3, 0.3])
    assert np.allclose(one("brightness", red, 2), [[[0.7, 0.35, 0.35]]])
    assert np.allclose(one("saturate", red, 1), [[[0.6, 0.51, 0.51]]])  # saturation 0.5 -> 0.15
    assert np.allclose(one("saturate", np.full((1, 1, 3), 0.5), 4), [[[0.5, 0.45, 0.45]]])
    two = np.stack([np.zeros((1, 3)), np.ones((1, 3))])
    assert np.allclose(one("contrast", two, 2)[:, 0, 0], [0.25, 0.75])
    assert np.allclose(one("brightness", np.zeros((1, 1, 3)), 5), 0.3)
    with pytest.raises(UserError, match="three channels"):
        one("saturate", np.zeros((2, 2, 1)))


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "glass_blur"])
def test_blurs_keep_a_constant_image_and_the_mean_of_a_point(name):
    flat = np.full((32, 32, 3), 0.5)
    for severity in SEVERITIES:
        assert np.abs(one(name, flat, severity) - 0.5).max() < 1 / 255
    if name in ("gaussian_blur", "defocus_blur", "motion_blur"):
        point = np.zeros((31, 31, 1))
        point[15, 15] = 1
        assert one(name, point, 5).sum() == pytest.approx(1)
        assert one(name, point, 5).max() < 0.5


def test_a_motion_of_45_degrees_is_along_the_diagonal():
    point = np.zeros((31, 31, 1))
    point[15, 15] = 1
    for degrees, (dy, dx) in {0: (0, 1), 90: (1, 0), 45: (1, 1)}.items():
        moved = filters.motion(point, 6, 2.0, degrees)[..., 0]
        rows, columns = np.nonzero(moved > 1e-9)
        steps = len(rows)
        assert steps > 4
        assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == sorted(
            (15 - k * dy, 15 - k * dx) for k in range(steps)
        )


def test_glass_copies_near_pixels_and_leaves_two_rows():
    x = np.arange(12 * 12).reshape(12, 12, 1) / 255
    found = np.round(one("glass_blur", x, 1) * 255).astype(int)[..., 0]
    away = np.arange(144).reshape(12, 12) - found
    assert set(np.unique(away[2:, 2:])) <= {0, 1, 12, 13}
    assert len(np.unique(away[2:, 2:])) == 4
    assert not away[:2].any()
    assert not away[:, :2].any()


def test_an_affine_map_of_three_moved_points():
    rows, columns = np.indices((33, 33))
    ramp = np.stack([rows, columns], axis=-1).astype(float)
    shift = filters.warped(ramp, np.full((3, 2), 3.0))
    assert np.allclose(shift[5:28, 5:28], ramp[5:28, 5:28] - 3)
    third, middle = 11, 16
    turned = filters.warped(ramp, np.array([[-2 * third, 0], [0, 2 * third], [2 * third, 0]]))  # a quarter turn
    assert np.allclose(turned[middle, middle], (middle, middle))


def test_plasma_has_the_range_and_the_size():
    clouds = filters.plasma(20, 2.0, np.random.default_rng(0))
    assert clouds.shape == (32, 32)
    assert (clouds.min(), clouds.max()) == (0, 1)
    rough, smooth = (np.abs(np.diff(filters.plasma(32, d, np.random.default_rng(0)))).mean() for d in (1.5, 4.0))
    assert smooth < rough


def test_edges_of_a_square_are_its_border():
    layer = np.zeros((20, 20), np.uint8)
    layer[5:15, 5:15] = 200
    found = filters.edges(layer, 50, 150)
    rows, columns = np.nonzero(found)
    assert {rows.min(), columns.min()} <= {4, 5}
    assert {rows.max(), columns.max()} <= {14, 15}
    assert not found[8:12, 8:12].any()
    assert 30 <= found.sum() <= 44
    assert not filters.edges(np.full((9, 9), 7, np.uint8), 50, 150).any()


def test_an_equalized_histogram_is_uniform():
    layer = np.array([[10, 10, 11], [12, 12, 13]], np.uint8)
    assert filters.equalized(layer).tolist() == [[0, 0, 64], [191, 191, 255]]
    assert filters.equalized(np.full((2, 2), 9, np.uint8)).tolist() == [[9, 9], [9, 9]]
