import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from bench.core import files
from bench.core.errors import UserError


def arrays():
    return {"index": np.arange(4), "clean": np.array([1, 1, 1, 0], bool), "words": np.array(["a", "bc", "", "d"])}


def test_arrays_round_trip(tmp_path):
    path = tmp_path / "examples.npz"
    files.write_arrays(path, arrays())
    found = files.read_arrays(path)
    assert list(found) == list(arrays())
    for key, value in arrays().items():
        assert found[key].dtype == value.dtype
        assert np.array_equal(found[key], value)
    assert [p.name for p in tmp_path.iterdir()] == ["examples.npz"]


class Bomb:
    """Makes the folder whose name it holds when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_are_refused_and_not_run(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "x.npz"
    np.savez(path, index=np.array([Bomb(trap)], dtype=object))
    with pytest.raises(UserError, match=r"\A.*not a readable .npz.*\Z"):
        files.read_arrays(path)
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(UserError, match=r"\A.*not a readable .npz.*\Z"):
        files.read_arrays(path)
    assert not trap.exists()


def npz(content):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


def archive_of(member):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("index.npy", member)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a zip", id="text"),
        pytest.param(npy(np.arange(3)), id="a lone npy"),
        pytest.param(archive_of(b"raw bytes"), id="member that is no array"),
        pytest.param(archive_of(b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((("), id="broken header"),
        pytest.param(archive_of(npy(np.arange(99))[:-8]), id="short member"),
        pytest.param(archive_of(npy(np.zeros(1, [(f"f{i}", "i1") for i in range(999)]))), id="endless header"),
        *[pytest.param(npz(arrays())[:cut], id=f"cut at {cut}") for cut in (1, 30, 100, 400, -100, -1)],
    ],
)
def test_what_is_no_npz_is_a_user_error_in_one_line(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"\A.*not a readable .npz.*\Z"):
        files.read_arrays(path)


def test_no_flipped_byte_ends_in_another_error(tmp_path):
    path = tmp_path / "x.npz"
    whole = npz({"x": np.random.default_rng(0).integers(0, 99, 60)})
    refusals = []
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
        try:
            files.read_arrays(path)
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > len(whole) / 2
    assert not any("\n" in refusal for refusal in refusals)


def test_missing_npz_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"\A.*x.npz does not exist\Z"):
        files.read_arrays(tmp_path / "x.npz")


def test_write_atomically_replaces(tmp_path):
    path = tmp_path / "a.txt"
    for content in (b"longer first", b"second"):
        files.write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
