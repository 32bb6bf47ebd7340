import numpy as np
import pytest
from sklearn.datasets import load_digits

from bench.datasets.digits import digits

# of the split that every published number of the digits suite was measured on
HASH = "af2cfe9e6f79e996ea4fc028a2f950211416b05916cd08bfe31bc5888e315b13"


@pytest.fixture(scope="module")
def data():
    return digits()


def as_set(images):
    return {image.tobytes() for image in images}


def test_sizes(data):
    assert (data.x_train.shape, data.x_test.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert (data.shape, data.classes, data.name) == ((1, 8, 8), 10, "digits")
    assert (data.x_train.min(), data.x_train.max()) == (0, 255)


def test_no_test_image_is_a_training_image(data):
    assert not as_set(data.x_train) & as_set(data.x_test)


def test_the_two_parts_are_all_of_scikit_learns(data):
    source = load_digits()
    pixels = np.round(source.images / 16 * 255).astype(np.uint8).reshape(len(source.images), -1)
    expected = np.column_stack([pixels, source.target])
    found = np.column_stack(
        [
            np.concatenate([data.x_train, data.x_test]).reshape(len(expected), -1),
            np.concatenate([data.y_train, data.y_test]),
        ]
    )
    assert np.array_equal(*(rows[np.lexsort(rows.T)] for rows in (found, expected)))


def test_stratified(data):
    share = np.bincount(data.y_test) / np.bincount(np.concatenate([data.y_train, data.y_test]))
    assert np.abs(share - 360 / 1797).max() < 0.006


def test_split_is_pinned(data):
    np.random.seed(1)
    assert data.hash == digits().hash == HASH
