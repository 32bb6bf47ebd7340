import numpy as np
import pytest

from bench.core.errors import UserError
from bench.datasets.load import load_arrays
from bench.datasets.synthetic import separable_points, sphere_points


@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0])
def test_separable_points_fulfil_the_assumption(gamma):
    x, y, v = separable_points(np.random.default_rng(0), 500, dim=5, radius=2.0, gamma=gamma)
    assert np.linalg.norm(x, axis=1).max() <= 2 + 1e-12
    assert np.linalg.norm(v) == pytest.approx(1)
    margins = (2 * y - 1) * (x @ v)
    assert margins.min() >= gamma - 1e-12
    assert margins.max() > 0.9 * 2.0
    assert set(y) == {0, 1}
    if gamma < 2:
        assert np.linalg.matrix_rank(x - x.mean(axis=0)) == 5


def test_sphere_points_are_apart_and_too_many_are_refused():
    x = sphere_points(np.random.default_rng(0), 20, dim=6, distance=0.6)
    assert np.allclose(np.linalg.norm(x, axis=1), 1)
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)[~np.eye(20, dtype=bool)]
    assert distances.min() > 0.6
    with pytest.raises(UserError, match="ask for fewer"):
        sphere_points(np.random.default_rng(0), 8, dim=2, distance=1.0)


def test_the_images_keep_the_margin():
    arrays = load_arrays("separable:side=3:gamma=0.4:train=200:test=50", None)
    x = arrays.x_train.reshape(200, 9) / 255 - 0.5
    _, _, v = separable_points(np.random.default_rng(0), 250, dim=9, radius=1.0, gamma=0.4)
    assert ((2 * arrays.y_train - 1) * (x @ v)).min() >= 0.2 - 3 * 0.5 / 255
    assert arrays.shape == (1, 3, 3)


def test_the_sphere_as_images():
    arrays = load_arrays("sphere:side=3:train=30:test=10", None)
    lengths = np.linalg.norm(2 * (arrays.x_train.reshape(30, 9) / 255 - 0.5), axis=1)
    assert np.allclose(lengths, 1, atol=0.02)
    assert arrays.y_train.sum() + arrays.y_test.sum() == 20


@pytest.mark.parametrize("name", ["separable:gamma=1.5", "separable:gamma=0", "separable:side=1", "sphere:train=1"])
def test_impossible_data_are_refused(name):
    with pytest.raises(UserError):
        load_arrays(name, None)


def test_each_point_has_the_class_of_the_nearest_seed():
    arrays = load_arrays("nearest-seed:seeds=4:train=300:test=50", None)
    assert arrays.x_train.shape == (300, 1, 2, 1)
    seeds = arrays.x_train[:4].reshape(4, 2) / 255  # the first points
    assert arrays.y_train[:4].tolist() == [0, 1, 2, 3]
    points = arrays.x_test.reshape(-1, 2) / 255
    far = np.square(points[:, None] - seeds).sum(axis=2)
    order = np.sort(far, axis=1)
    clear = order[:, 1] - order[:, 0] > 0.02  # seeds were rounded
    assert clear.sum() > 30
    assert (far.argmin(axis=1) == arrays.y_test)[clear].all()
