import numpy as np
import pytest

from bench.core.errors import UserError
from bench.datasets.arrays import KEYS, Arrays, check_arrays, data_folder, find_arrays, read_npz
from bench.datasets.fake import fake

SHAPE, CLASSES = (3, 4, 5), 3


def good(**changes):
    """12 + 6 colour images of 3 classes; a key changed to None is left out."""
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (12, 4, 5, 3), dtype=np.uint8),
        "y_train": np.arange(12) % CLASSES,
        "x_test": rng.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8),
        "y_test": np.arange(6) % CLASSES,
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def train(labels, dtype=np.int64):
    return {"y_train": np.array(labels, dtype=dtype)}


@pytest.fixture
def npz(tmp_path):
    def write(name="mine.npz", **changes):
        path = tmp_path / name
        np.savez_compressed(path, **good(**changes))
        return path

    return write


def test_good_file_reads_as_it_was_written(npz):
    path = npz()
    found = read_npz(path)
    for key, value in good().items():
        assert np.array_equal(getattr(found, key), value)
    assert (found.name, found.shape, found.classes) == (str(path), SHAPE, CLASSES)
    assert found.y_train.dtype == found.y_test.dtype == np.int64


def test_grey_images_get_a_channel():
    found = check_arrays("it", good(x_train=good()["x_train"][..., 0], x_test=good()["x_test"][..., 0]))
    assert found.x_train.shape == (12, 4, 5, 1)
    assert found.shape == (1, 4, 5)


def test_labels_may_be_small_integers():
    found = check_arrays("it", good(y_train=good()["y_train"].astype(np.uint8)))
    assert found.y_train.dtype == np.int64


@pytest.mark.parametrize("key", KEYS)
def test_missing_key_is_a_user_error(npz, key):
    with pytest.raises(UserError, match=rf"\A.*{key} missing.*\Z"):
        read_npz(npz(**{key: None}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"x_train": good()["x_train"] / 255}, "x_train is float64", id="float images"),
        pytest.param({"x_test": good()["x_test"].astype(int)}, "x_test is int64", id="wide images"),
        pytest.param({"x_train": good()["x_train"][0, 0]}, "x_train has the shape", id="flat images"),
        pytest.param({"x_train": np.uint8(3)}, "x_train has the shape", id="a number"),
        pytest.param({"x_train": good()["x_train"][None]}, "x_train has the shape", id="five axes"),
        pytest.param({"x_train": np.zeros((12, 3, 4, 5), np.uint8)}, "x_train has the shape", id="channels first"),
        pytest.param({"x_train": np.zeros((0, 4, 5, 3), np.uint8)}, "holds no images", id="no images"),
        pytest.param({"x_test": np.zeros((6, 4, 0, 3), np.uint8)}, "x_test has the shape", id="no pixels"),
        pytest.param({"x_test": np.zeros((6, 4, 4, 3), np.uint8)}, "of one size", id="sizes differ"),
        pytest.param({"x_test": np.zeros((6, 4, 5, 1), np.uint8)}, "of one size", id="channels differ"),
        pytest.param({"y_train": np.arange(11) % 3}, "y_train has the shape .11,.*12 images", id="a label short"),
        pytest.param({"y_test": np.zeros((6, 1), int)}, "y_test has the shape", id="labels in two axes"),
        pytest.param({"y_test": np.zeros(0, int)}, "y_test has the shape", id="no labels"),
        pytest.param({"y_test": np.zeros(6)}, "y_test is float64", id="float labels"),
        pytest.param({"y_test": np.zeros(6, bool)}, "y_test is bool", id="boolean labels"),
        pytest.param({"y_test": np.array(list("012012"))}, "y_test is <U1", id="text labels"),
        pytest.param({"y_test": np.array(["NaT"] * 6, "m8[s]")}, "y_test", id="durations as labels"),
        pytest.param(train([-1, 0, 1, 2] * 3), "from -1 to 2", id="negative label"),
        pytest.param({"y_test": np.array([0, 1, 2, 0, 1, -1])}, "from -1 to 2", id="negative test label"),
        pytest.param(train([0, 1, 2, 2**63] * 3, np.uint64), "from 0 to 9223372036854775808", id="huge label"),
        pytest.param(train([0, 1, 3, 3] * 3), "label 2 does not occur", id="gap in the labels"),
        pytest.param(train([1, 2, 3, 3] * 3), "label 0 does not occur", id="labels from one"),
        pytest.param(train([0] * 12), "label 1 does not occur", id="one class"),
        pytest.param({"y_test": np.array([0, 1, 2, 0, 1, 3])}, "y_test has the label 3", id="unseen test label"),
    ],
)
def test_hostile_arrays_are_a_user_error_in_one_line(npz, changes, said):
    with pytest.raises(UserError, match=rf"\A.*{said}.*\Z"):
        read_npz(npz(**changes))


def test_pickled_arrays_are_refused(npz):
    path = npz(y_test=np.array([None] * 6, dtype=object))
    with pytest.raises(UserError, match=r"\A.*not a readable .npz.*\Z"):
        read_npz(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_a_user_error(npz, share):
    path = npz()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"\A.*not a readable .npz.*\Z"):
        read_npz(path)


def test_what_is_no_zip_is_a_user_error(tmp_path):
    path = tmp_path / "mine.npz"
    path.write_text("x_train,y_train\n1,2\n")
    with pytest.raises(UserError, match=r"\A.*not a readable .npz.*\Z"):
        read_npz(path)


@pytest.mark.parametrize("name", ["nowhere.npz", ""])
def test_missing_path_is_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match=r"\A.*does not exist; give a path to an .npz.*\Z"):
        read_npz(tmp_path / name)


@pytest.mark.parametrize("key", KEYS)
def test_hash_changes_with_each_array(key):
    changed = good()[key].copy()
    changed[0] = 1 - changed[0] if changed.ndim == 1 else changed[0] ^ 1
    assert Arrays("it", **good(**{key: changed})).hash != Arrays("it", **good()).hash


def test_hash_is_of_the_content_alone():
    fortran = good(x_train=np.asfortranarray(good()["x_train"]))
    assert Arrays("one", **good()).hash == Arrays("two", **fortran).hash
    reshaped = good(x_train=good()["x_train"].reshape(12, 5, 4, 3), x_test=good()["x_test"].reshape(6, 5, 4, 3))
    assert Arrays("one", **reshaped).hash != Arrays("one", **good()).hash


def known(folder, download, shape=SHAPE, classes=CLASSES):
    return find_arrays("mine", folder, download, shape=shape, classes=classes)


def never(folder):
    raise AssertionError("downloaded although the file exists")


def test_find_takes_the_file_first(npz, tmp_path):
    npz()
    found = known(tmp_path, never)
    assert found.name == "mine"
    assert np.array_equal(found.x_train, good()["x_train"])


def test_find_downloads_into_the_folder(tmp_path):
    asked = []

    def download(folder):
        asked.append(folder)
        return good()

    assert known(tmp_path, download).hash == check_arrays("it", good()).hash
    assert asked == [tmp_path]


@pytest.mark.parametrize("error", [OSError, RuntimeError, ValueError, ImportError, ConnectionError])
def test_failing_download_is_one_line_that_says_what_to_do(tmp_path, error):
    def download(folder):
        raise error("no network\nat all")

    with pytest.raises(UserError, match=rf"\Amine: .*{error.__name__}.*mine.npz.*--data-dir or BENCH_DATA\Z"):
        known(tmp_path, download)


def test_broken_file_is_not_replaced_by_a_download(tmp_path):
    (tmp_path / "mine.npz").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"\A.*mine.npz is not a readable .npz.*\Z"):
        known(tmp_path, never)


@pytest.mark.parametrize(("shape", "classes"), [((3, 4, 4), CLASSES), (SHAPE, 10)])
def test_another_data_set_under_the_name_is_refused(npz, tmp_path, shape, classes):
    npz()
    with pytest.raises(UserError, match=r"\A.*mine.npz: images .3, 4, 5., 3 classes; mine has.*\Z"):
        known(tmp_path, never, shape, classes)


@pytest.fixture
def no_environment(monkeypatch):
    for name in ("BENCH_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_data_folder_prefers_the_argument_then_the_environment(tmp_path, no_environment):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    no_environment.setenv("BENCH_DATA", str(two))
    assert data_folder(one) == one
    assert data_folder(None) == two


def test_named_data_folder_must_exist(tmp_path, no_environment):
    with pytest.raises(UserError, match=r"\Adata folder .*nowhere does not exist.*\Z"):
        data_folder(tmp_path / "nowhere")
    no_environment.setenv("BENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"\Adata folder .*nowhere does not exist.*\Z"):
        data_folder(None)


@pytest.mark.parametrize("cache", ["", None, "elsewhere"])
def test_data_folder_is_the_users_cache_otherwise(tmp_path, no_environment, cache):
    no_environment.setenv("HOME", str(tmp_path))
    if cache is not None:
        no_environment.setenv("XDG_CACHE_HOME", cache and str(tmp_path / cache))
    assert data_folder(None) == tmp_path / (cache or ".cache") / "robust-bracket"


def test_fake_data_follow_their_options():
    found = fake(shape=(2, 4, 6), classes=3, train=9, test=5, seed=1)
    assert found.x_train.shape == (9, 4, 6, 2)
    assert (found.shape, found.classes, len(found.y_test)) == ((2, 4, 6), 3, 5)
    assert found.hash == fake(shape=(2, 4, 6), classes=3, train=9, test=5, seed=1).hash
    assert found.hash != fake(shape=(2, 4, 6), classes=3, train=9, test=5, seed=2).hash
