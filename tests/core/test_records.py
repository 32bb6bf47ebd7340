import io
import json
import os
import pickle
import zipfile

import msgspec
import numpy as np
import pytest
from scipy.stats import beta

from bench.core import records
from bench.core.errors import UserError
from bench.core.records import Artifact, AttackResult, CertifierResult, Record, Robustness, Training, accuracy

CLEAN, FGSM, PGD = [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]


def hits(values):
    return np.array(values, dtype=bool)


def make_table(**changes):
    """Four examples, the last one wrong; fgsm breaks the third, pgd the second."""
    table = {
        "index": np.arange(4),
        "label": np.array([0, 1, 2, 3]),
        "prediction": np.array([0, 1, 2, 0]),
        "clean": hits(CLEAN),
        "robust/fgsm": hits(FGSM),
        "robust/pgd-10": hits(PGD),
    }
    return table | {key.replace("robust_", "robust/"): value for key, value in changes.items()}


def under(values):
    found = accuracy(hits(values))
    return AttackResult(found.acc, found.ci95, forwards=8, backwards=4, seconds=0.5)


def make_record(**changes):
    values = {
        "schema": 1, "suite": None, "dataset": "digits", "model": "cnn", "defense": "standard", "seed": 3,
        "threat": records.Threat("Linf", 0.2), "config": {"a": [1, None]}, "config_hash": "abc", "n_examples": 4,
        "clean": accuracy(hits(CLEAN)), "attacks": {"fgsm": under(FGSM), "pgd-10": under(PGD)},
        "worst": records.robustness(hits([1, 0, 0, 0])), "certifiers": {},
        "training": Training(epochs=1, seconds=2.5, forwards=40, backwards=30, warnings=["w"]),
        "sanity": records.Sanity("ok", []), "artifacts": {"weights": Artifact("00", 5, path="w")},
        "provenance": {"threads": 1},
    }  # fmt: skip
    return Record(**(values | changes))


@pytest.mark.parametrize("n", [1, 7, 100, 10_000])
def test_interval_closed_forms(n):
    edge = 0.025 ** (1 / n)
    none, every = accuracy(np.zeros(n, bool)), accuracy(np.ones(n, bool))
    assert (none.acc, none.ci95) == (0.0, (0.0, pytest.approx(1 - edge, rel=1e-9)))
    assert (every.acc, every.ci95) == (1.0, (pytest.approx(edge, rel=1e-9), 1.0))


@pytest.mark.parametrize(("k", "n"), [(1, 2), (1, 360), (77, 360), (359, 360), (5000, 10_000)])
def test_interval_against_scipy(k, n):
    found = accuracy(np.arange(n) < k)
    expected = (beta.ppf(0.025, k, n - k + 1), beta.ppf(0.975, k + 1, n - k))
    assert found.acc == k / n
    assert found.ci95 == pytest.approx(expected, rel=1e-9)


def test_specs_and_worst_case_of_a_table():
    table = make_table()
    assert records.attack_specs(table) == ["fgsm", "pgd-10"]
    assert records.worst_case(table).tolist() == [True, False, False, False]
    assert records.robustness(records.worst_case(table)) == Robustness(0.25, accuracy(hits([1, 0, 0, 0])).ci95)


def test_a_true_record_passes():
    records.check(make_record(), make_table())
    table = {key: value for key, value in make_table().items() if not key.startswith("robust/")}
    records.check(make_record(attacks={}, worst=None), table)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"robust_fgsm": hits([1, 1, 0, 1])}, "robust/fgsm.*wrong without any attack"),
        ({"index": np.array([0, 1, 1, 3])}, "no example twice"),
        ({"index": np.arange(4, dtype=np.int32)}, "'index' is int32"),
        ({"index": np.array(4)}, "index"),
        ({"label": np.array([0.0, 1, 2, 3])}, "'label' is float64"),
        ({"clean": np.array(CLEAN)}, "'clean' is int64"),
        ({"robust_fgsm": np.array(FGSM, np.uint8)}, "'robust/fgsm' is uint8"),
        ({"robust_fgsm": hits(FGSM[:3])}, "'robust/fgsm' is bool .3,."),
        ({"robust_fgsm": hits([FGSM])}, "'robust/fgsm' is bool .1, 4."),
        ({"certified/ibp": np.ones(4)}, "'certified/ibp' is float64"),
        ({"radius/ibp": np.ones(4)}, "'radius/ibp' is float64"),
        ({"prediction": np.array([0, 1, 0, 0])}, "'clean' does not follow"),
    ],
)
def test_a_table_that_is_none_is_a_user_error(changes, said):
    with pytest.raises(UserError, match=rf"\A.*{said}.*\Z"):
        records.check_table(make_table(**changes))


@pytest.mark.parametrize("column", ["index", "label", "prediction", "clean"])
def test_a_table_without_a_column_is_a_user_error(column):
    table = make_table()
    del table[column]
    with pytest.raises(UserError, match=rf"\A.*no column '{column}'.*\Z"):
        records.check_table(table)


def test_an_empty_table_is_a_user_error():
    with pytest.raises(UserError, match=r"\A.*at least one row.*\Z"):
        records.check_table({key: value[:0] for key, value in make_table().items()})


NEARLY = records.Accuracy(0.75, (accuracy(hits(CLEAN)).ci95[0], 0.99))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean": accuracy(hits([1, 1, 1, 1]))}, "clean accuracy is 1.0; its table gives 0.75"),
        ({"clean": NEARLY}, "clean accuracy"),
        ({"clean": records.Accuracy(float("nan"), NEARLY.ci95)}, "clean accuracy is nan"),
        ({"attacks": {"fgsm": under(CLEAN), "pgd-10": under(PGD)}}, "accuracy under fgsm is 0.75"),
        ({"attacks": {"fgsm": under(FGSM)}}, "attacks are not those"),
        ({"attacks": {"fgsm": under(FGSM), "pgd-10": under(PGD), "x": under(PGD)}}, "attacks are not those"),
        ({"worst": records.robustness(hits(FGSM))}, "worst accuracy is 0.5; its table gives 0.25"),
        ({"worst": None}, "worst"),
        ({"certifiers": {"ibp": CertifierResult(1.0, (0.4, 1.0), 0.2, 1.0)}}, "certifiers"),
        ({"n_examples": 5}, "counts 5 examples, its table 4"),
        ({"schema": 2}, "schema 2"),
    ],
)
def test_a_tampered_record_is_a_user_error(changes, said):
    with pytest.raises(UserError, match=rf"\A.*{said}.*\Z"):
        records.check(make_record(**changes), make_table())


def test_worst_accuracy_without_an_attack_is_a_user_error():
    table = {key: value for key, value in make_table().items() if not key.startswith("robust/")}
    with pytest.raises(UserError, match=r"\A.*worst.*\Z"):
        records.check(make_record(attacks={}), table)


def test_record_round_trip(tmp_path):
    records.write_record(tmp_path, make_record())
    assert records.read_record(tmp_path) == make_record()
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_record_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        records.write_record(tmp_path, make_record(provenance={"loss": float("nan")}))
    assert not list(tmp_path.iterdir())


def plain_record(**changes):
    return json.dumps(msgspec.to_builtins(make_record()) | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"[]",
        b"\xff\xfe\x00",
        plain_record()[:-20],
        plain_record(seed="three"),
        plain_record(seed=1.5),
        plain_record(n_examples=None),
        plain_record(surprise=1),
        plain_record(**{"two\nlines": 1}),
        plain_record(threat={"norm": "Linf", "eps": 0.1, "box": [0, 1]}),
        plain_record(clean={"acc": float("nan"), "ci95": [0, 1]}),
        plain_record(clean={"acc": 0.5, "ci95": [0, 1, 2]}),
        plain_record(clean=0.5),
        plain_record().replace(b'"seed": 3', b'"seed": 1e999'),
        plain_record().replace(b'"seed": 3, ', b""),
        b'{"provenance": {"a": ' + b"[" * 100_000,
    ],
)
def test_malformed_record_is_a_user_error_in_one_line(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(UserError, match=r"\A.*record.json is not a record: .*\Z"):
        records.read_record(tmp_path)


def test_missing_record_is_a_user_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"\A.*has no record.json.*\Z"):
            records.read_record(folder)


def test_find_records(tmp_path):
    for name in ("b/0", "a/1", "a/0"):
        (tmp_path / name).mkdir(parents=True)
        records.write_record(tmp_path / name, make_record())
    ordered = [tmp_path / name for name in ("a/0", "a/1", "b/0")]
    assert records.find_records([tmp_path]) == ordered
    assert records.find_records([tmp_path / "b/0", tmp_path]) == [ordered[2], *ordered[:2]]


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_find_records_without_any_is_a_user_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"\A.*{name} holds no record.json.*\Z"):
        records.find_records([tmp_path / name])


def test_arrays_round_trip(tmp_path):
    path = tmp_path / "examples.npz"
    records.write_arrays(path, make_table())
    found = records.read_arrays(path)
    assert list(found) == list(make_table())
    for key, value in make_table().items():
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
        records.read_arrays(path)
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(UserError, match=r"\A.*not a readable .npz.*\Z"):
        records.read_arrays(path)
    assert not trap.exists()


def npz(arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
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
        *[pytest.param(npz(make_table())[:cut], id=f"cut at {cut}") for cut in (1, 30, 100, 400, -100, -1)],
    ],
)
def test_what_is_no_npz_is_a_user_error_in_one_line(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"\A.*not a readable .npz.*\Z"):
        records.read_arrays(path)


def test_no_flipped_byte_ends_in_another_error(tmp_path):
    path = tmp_path / "x.npz"
    whole = npz({"x": np.random.default_rng(0).integers(0, 99, 60)})
    refusals = []
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
        try:
            records.read_arrays(path)
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > len(whole) / 2
    assert not any("\n" in refusal for refusal in refusals)


def test_missing_npz_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"\A.*x.npz does not exist\Z"):
        records.read_arrays(tmp_path / "x.npz")


def test_artifact_of_a_file(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc, FIPS 180-2
    assert records.artifact(path) == Artifact(sha256=digest, bytes=3, path="w.bin")


def test_write_atomically_replaces(tmp_path):
    path = tmp_path / "a.txt"
    for content in (b"longer first", b"second"):
        records.write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
