"""`bench submit --contest`: valid witnesses lower an entry; others are counted and change nothing."""

import re
import shutil

import numpy as np
import pytest

from bench.core.errors import CheckError, UserError
from bench.core.files import read_arrays, sha256, write_arrays
from bench.core.record_files import artifact
from bench.datasets.digits import digits
from bench.publish.contest import BROKEN, contest_run, recheck_contest
from bench.verify.inputs import settings
from leaderboard.published_results import read_evaluated_run
from leaderboard.publishing import add_runs
from tests.forged_records import change_record
from tests.publish.forging import ABOUT, change_arrays, evaluated, run_of, trained, tree

pytestmark = pytest.mark.slow
SETTINGS = {"seed": 0, "threads": 1, "attack": "pgd-10"}


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    """A run that only one weak attack tried."""
    return run_of(trained(tmp_path_factory.mktemp("weak"), "--epochs", "4", "--attacks", "random-noise"))


@pytest.fixture(scope="module")
def strong(tmp_path_factory, weak):
    """The same weights under a strong attack."""
    return evaluated(tmp_path_factory.mktemp("strong"), weak / "weights.safetensors", "--attacks", "bracket-attack")


@pytest.fixture
def world(tmp_path, weak, strong):
    """A folder with results/digits/weak/0, and the weights and witnesses of a contest."""
    add_runs(tmp_path / "results", "weak", ABOUT, [weak], url="https://example.org/weak")
    for file in ("weights.safetensors", "witnesses.npz"):
        shutil.copy(strong / file, tmp_path / file)
    return tmp_path


def attempt(world, *, entry="digits/weak/0", by="Somebody", weights="weights.safetensors", **options):
    contest_run(
        world / "results", entry, world / "witnesses.npz", weights=world / weights, by=by,
        settings=settings(**SETTINGS), **options,
    )  # fmt: skip


def refused(world, kind=(UserError, CheckError), **options):
    before = tree(world)
    with pytest.raises(kind) as caught:
        attempt(world, **options)
    line = str(caught.value)
    assert line.isascii()
    assert line.isprintable()
    assert tree(world) == before
    return line


def robust(world):
    return read_evaluated_run(world / "results/digits/weak/0").robust


def test_valid_witnesses_lower_the_entry(world, weak, strong, capsys):
    record = sha256(world / "results/digits/weak/0/record.json")
    before = robust(world)
    still_robust = before & read_arrays(strong / "examples.npz")["robust/bracket-attack"]
    assert still_robust.sum() < before.sum()
    attempt(world, url="https://example.org/witnesses.npz")
    assert np.array_equal(robust(world), still_robust)
    assert sha256(world / "results/digits/weak/0/record.json") == record
    (contest,) = read_evaluated_run(world / "results/digits/weak/0").contests
    assert contest.by == "Somebody"
    assert contest.broken == np.flatnonzero(before & ~still_robust).tolist()
    assert contest.witnesses.sha256 == sha256(world / "witnesses.npz")
    out = capsys.readouterr().out
    assert f"{len(contest.broken)}  {BROKEN}" in out
    assert "it is in no git repository" in out
    before = tree(world)
    attempt(world)  # the same witnesses: nothing to do
    assert tree(world) == before
    assert "have been counted" in capsys.readouterr().out
    change(world, lambda arrays: arrays.update(note=np.zeros(1)))
    assert "no witness" in refused(world, CheckError)  # they are broken already


def change(world, edit):
    arrays = {key: value.copy() for key, value in read_arrays(world / "witnesses.npz").items()}
    edit(arrays)
    write_arrays(world / "witnesses.npz", arrays)


def clean_images(arrays):
    images = digits(None).x_test[arrays["index"]]
    arrays["x_adv"] = (images.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)


HARMLESS = {
    "beyond eps": lambda a: a["x_adv"].__isub__(np.where(a["x_adv"] > 0.5, 0.5, -0.5).astype(np.float32)),
    "outside [0, 1]": lambda a: clean_images(a) or a["x_adv"].__isub__(0.001),
    "classified correctly": clean_images,
}


@pytest.mark.parametrize("why", HARMLESS)
def test_invalid_witnesses_are_counted_and_change_nothing(why, world, capsys):
    change(world, HARMLESS[why])
    assert "no witness" in refused(world, CheckError)
    outcomes = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert why in outcomes
    assert BROKEN not in outcomes


def test_a_point_that_fools_the_model_from_outside_the_box_breaks_nothing(world, capsys):
    def leave(arrays):
        black = digits(None).x_test[arrays["index"]].transpose(0, 3, 1, 2) == 0
        arrays["x_adv"][black & (arrays["x_adv"] == 0)] = -0.001

    change(world, leave)
    assert "no witness" in refused(world, CheckError)
    assert "outside [0, 1]" in capsys.readouterr().out


def test_a_contest_on_other_data_than_the_record_is_refused(world):
    change_record(world / "results/digits/weak/0", lambda record: record["config"].update(data_hash="0" * 64))
    assert "has a different hash from the record's" in refused(world, UserError)


def test_only_the_valid_one_of_many_witnesses_counts(world):
    before = robust(world)
    index = read_arrays(world / "witnesses.npz")["index"]
    row = int(np.flatnonzero(before[index])[0])
    change(world, lambda a: a["x_adv"].__setitem__(np.arange(len(index)) != row, np.nan))
    attempt(world)
    assert np.flatnonzero(before & ~robust(world)).tolist() == [index[row]]


MALFORMED = {
    "index of no example": (lambda a: a.update(index=a["index"] + 400), "0 to 359"),
    "negative index": (lambda a: a.update(index=-1 - a["index"]), "0 to 359"),
    "index of fractions": (lambda a: a.update(index=a["index"].astype(float)), "not int64"),
    "images of another size": (lambda a: a.update(x_adv=a["x_adv"][:, :, 1:]), "'x_adv' has the shape"),
    "points in double precision": (lambda a: a.update(x_adv=a["x_adv"].astype(float)), "float64"),
    "none": (lambda a: a.update(index=a["index"][:0], x_adv=a["x_adv"][:0]), "not int64"),
    "one index": (lambda a: a.update(index=a["index"][0]), "not int64"),
    "no points": (lambda a: a.pop("x_adv"), "no array 'x_adv'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_witnesses_are_refused(case, world):
    edit, reason = MALFORMED[case]
    change(world, edit)
    assert reason in refused(world, UserError)


def test_witnesses_with_objects_are_never_read(world):
    np.savez(world / "witnesses.npz", index=np.array([{}], dtype=object), x_adv=np.zeros(1))
    assert "pickles" in refused(world, UserError)


@pytest.mark.parametrize(("options", "reason"), [
    ({"entry": "digits/none/0"}, "is not in"),
    ({"entry": "digits/../../0"}, "SUITE/ENTRY/SEED"),
    ({"entry": "digits/../0"}, "is not valid"),
    ({"entry": "digits/weak/-1"}, "SUITE/ENTRY/SEED"),
    ({"entry": "digits/weak/\u0661"}, "SUITE/ENTRY/SEED"),
    ({"by": ""}, "--by"),
    ({"by": "\u202eydobemoS"}, "U+202E"),
    ({"url": "http://example.org/w.npz"}, "https"),
    ({"weights": "witnesses.npz"}, "witnesses.npz cannot be read"),
])  # fmt: skip
def test_wrong_use_is_one_line(options, reason, world):
    assert reason in refused(world, UserError, **options)


def test_weights_of_another_run_are_refused(world, tmp_path_factory):
    other = trained(tmp_path_factory.mktemp("other"), "--epochs", "1", "--attacks", "none", "--seeds", "5")
    shutil.copy(run_of(other) / "weights.safetensors", world / "weights.safetensors")
    assert "not the weights of the record" in refused(world, UserError)


def test_a_refuted_certificate_is_recorded_and_reported(tmp_path, weak, world):
    run = shutil.copytree(weak, tmp_path / "run")

    def certify(table):
        table["certified/ibp"] = table["clean"].copy()
        table["radius/ibp"] = np.where(table["clean"], np.float32(0.2), np.float32(0))

    change_arrays(run, "examples", certify)
    change_record(run, lambda r: r.update(seed=1))
    change_record(run, lambda r: r["artifacts"]["weights"].update(sha256="0" * 64))  # past the rule of one training
    folder = add_runs(world / "results", "weak", ABOUT, [run]) / "1"
    shutil.copy(weak / "record.json", tmp_path / "record.json")
    change_record(folder, lambda r: r["artifacts"]["weights"].update(sha256=sha256(world / "weights.safetensors")))
    with pytest.raises(CheckError, match="CERTIFICATE REFUTED: digits/weak/1"):
        attempt(world, entry="digits/weak/1")
    assert read_evaluated_run(folder).contests


# a contest in a pull request, checked again from its addresses


@pytest.fixture
def claimed(world):
    """The file of a successful contest; the results without it are in base/."""
    shutil.copytree(world / "results", world / "base")
    attempt(world, url="https://example.org/witnesses.npz")
    (file,) = (world / "results/digits/weak/0/contests").iterdir()
    return file


def again(world, file):
    def open_url(url, _seconds):
        return (world / url.rpartition("/")[2]).open("rb")

    recheck_contest(world / "base", "digits/weak/0", file, settings=settings(**SETTINGS), open_url=open_url)


def test_a_contest_of_somebody_else_is_checked_again(world, claimed):
    before = tree(world)
    again(world, claimed)
    assert tree(world) == before


@pytest.mark.parametrize(("edit", "reason"), [
    (lambda c: c["broken"].pop(), "its witnesses"),
    (lambda c: c["broken"].reverse(), "in order"),
    (lambda c: c.update(broken=[]), "in order"),
    (lambda c: c.update(by="<\u202e>"), "U+202E"),
    (lambda c: c.update(rank=1), "unknown field"),
    (lambda c: c["witnesses"].update(sha256="0" * 64), "not named after"),
    (lambda c: c["witnesses"].update(url="file:///etc/passwd"), "https"),
    (lambda c: c["witnesses"].pop("url"), "https"),
])  # fmt: skip
def test_a_contest_that_claims_something_else_is_refused(edit, reason, world, claimed):
    change_record(claimed.parent, edit, claimed.name)
    before = tree(world)
    with pytest.raises((UserError, CheckError), match=re.escape(reason)):
        again(world, claimed)
    assert tree(world) == before


def test_a_download_with_another_hash_is_refused(world, claimed):
    change(world, lambda a: a.update(index=a["index"][::-1]))
    assert artifact(world / "witnesses.npz").sha256[:12] != claimed.stem
    with pytest.raises(CheckError, match="is not the"):
        again(world, claimed)
