"""Each tile of a sheet is the image of its example; only files that a record names are used."""

import io

import msgspec
import numpy as np
import pytest
from PIL import Image

from bench.core.files import sha256, write_arrays
from bench.core.record_files import read_record, write_record
from bench.core.records import Artifact
from leaderboard import witness_images
from leaderboard.published_results import Contest, add_contest, read_entries, write_contest
from leaderboard.witness_images import Published, draw_images
from tests.publish.published import flags, publish, table_of

N, SIDE, EPS = 10, 4, 0.2


def images_of(channels, n=N):
    return np.random.default_rng(0).integers(60, 190, (n, SIDE, SIDE, channels), dtype=np.uint8)


def write_witnesses(path, x, index, sign=1, source="pgd-50"):
    x_adv = np.moveaxis(x[index] / 255 + sign * EPS, -1, 1).astype(np.float32)
    write_arrays(path, {"index": np.array(index), "x_adv": x_adv, "attack": np.array([source] * len(index))})
    return Artifact(sha256=sha256(path), bytes=path.stat().st_size, path=path.name)


def entries_of(tmp_path, x, *, sources=("pgd-50", "pgd-50")):
    """An entry with two seeds: the first breaks the examples 8 and 9, the second 7 to 9."""
    kept, home = tmp_path / "witnesses", publish(tmp_path / "results", "mine", [table_of(flags(N, k)) for k in (8, 7)])
    for seed, (hits, sign) in enumerate(((8, 1), (7, -1))):
        (kept / str(seed)).mkdir(parents=True)
        file = write_witnesses(kept / str(seed) / "witnesses.npz", x, list(range(hits, N)), sign, sources[seed])
        record = read_record(home / str(seed))
        artifacts = record.artifacts | {"witnesses": file}
        write_record(home / str(seed), msgspec.structs.replace(record, artifacts=artifacts))
    return read_entries(tmp_path / "results", "digits")[0], kept


def tile(files, name, example, across, part=0, parts=1):
    pixels = np.asarray(Image.open(io.BytesIO(files[name])))
    rows = pixels.shape[0] // parts
    top, left = part * rows + SIDE * (example // across), SIDE * (example % across)
    return pixels[top : top + SIDE, left : left + SIDE]


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_original_adversarial_and_difference(tmp_path, channels):
    x = images_of(channels)
    entries, kept = entries_of(tmp_path, x)
    images, files = draw_images("digits", entries, Published.find(kept, entries), x)
    assert (images.shown, images.width, images.height) == (N, SIDE, SIDE)
    (mine,) = images.witnesses
    assert mine.index == (7, 8, 9)
    assert [mine.sources[i] for i in mine.source] == ["pgd-50, seed 1", "pgd-50, seed 0", "pgd-50, seed 0"]
    for example, sign in ((7, -1), (8, 1)):
        original = tile(files, images.originals, example, images.across)
        np.testing.assert_array_equal(original, x[example].squeeze())
        attacked = tile(files, mine.file, example, images.across, 0, 2)
        assert np.abs(attacked - (x[example].squeeze() + sign * 255 * EPS)).max() <= 1
        change = tile(files, mine.file, example, images.across, 1, 2)
        assert set(np.unique(change)) == {255 if sign > 0 else 0}
    assert not tile(files, mine.file, 3, images.across, 0, 2).any()


def test_a_file_that_no_record_names_is_not_shown(tmp_path):
    x = images_of(1)
    entries, kept = entries_of(tmp_path, x)
    write_witnesses(kept / "0" / "witnesses.npz", x, [9])
    (only,) = Published.find(kept, entries).files.values()
    assert only.parent.name == "1"
    assert not Published.find(None, entries).files


def test_a_file_beside_its_record_needs_no_folder(tmp_path):
    x = images_of(1)
    entries, kept = entries_of(tmp_path, x)
    (kept / "0" / "witnesses.npz").rename(entries[0].runs[0].folder / "witnesses.npz")
    assert len(Published.find(None, entries).files) == 1


def test_an_example_that_fell_in_a_contest_is_shown_and_says_by_whom(tmp_path):
    x = images_of(1)
    entries, kept = entries_of(tmp_path, x)
    x_adv = np.moveaxis(x[[2, 5, 8]] / 255 - EPS, -1, 1).astype(np.float32)
    write_arrays(kept / "found.npz", {"index": np.array([2, 5, 8]), "x_adv": x_adv})
    found, home = (kept / "found.npz").read_bytes(), entries[0].runs[0].folder
    file = Artifact(sha256=sha256(kept / "found.npz"), bytes=len(found), path="found.npz")
    contest = Contest(by="somebody", broken=[5, 8], witnesses=file, finished="2026-01-01T00:00:00Z")
    write_contest(home, contest, found)
    entries = read_entries(tmp_path / "results", "digits")[0]
    images, files = draw_images("digits", entries, Published.find(kept, entries), x)
    (mine,) = images.witnesses
    shown = dict(zip(mine.index, [mine.sources[i] for i in mine.source], strict=True))
    assert set(shown) == {5, 7, 8, 9}  # 2 was not confirmed
    assert (shown[5], shown[8]) == ("contest by somebody, seed 0", "pgd-50, seed 0")
    attacked = tile(files, mine.file, 5, images.across, 0, 2)
    assert np.abs(attacked - (x[5].squeeze() - 255 * EPS)).max() <= 1
    alone = draw_images("digits", entries, Published.find(None, entries), x)[0].witnesses
    assert [each.index for each in alone] == [(5, 8)]


def test_examples_of_a_contest_at_an_address_are_shown_from_the_folder_they_were_fetched_to(tmp_path):
    x = images_of(1)
    entries, kept = entries_of(tmp_path, x)
    write_arrays(kept / "fetched.npz", {"index": np.array([5]), "x_adv": np.moveaxis(x[[5]] / 255, -1, 1)})
    found = (kept / "fetched.npz").read_bytes()
    file = Artifact(sha256=sha256(kept / "fetched.npz"), bytes=len(found), path=None, url="https://example.org/a.npz")
    contest = Contest(by="somebody", broken=[5], witnesses=file, finished="2026-01-01T00:00:00Z")
    add_contest(tmp_path / "results", "digits", "mine", 0, contest)
    entries = read_entries(tmp_path / "results", "digits")[0]
    for folder, shown in ((kept, (5, 7, 8, 9)), (None, ())):
        images, _ = draw_images("digits", entries, Published.find(folder, entries), x)
        assert [i for each in images.witnesses for i in each.index] == list(shown)


def test_witnesses_under_another_threat_model_are_not_shown(tmp_path):
    x = images_of(1)
    entries, kept = entries_of(tmp_path, x, sources=("pgd-50:eps=0.4", "bracket"))
    (mine,) = draw_images("digits", entries, Published.find(kept, entries), x)[0].witnesses
    assert mine.sources == ("bracket, seed 1",)


def test_a_sheet_holds_as_many_examples_as_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(witness_images, "MOST_VALUES", 8 * SIDE * SIDE)
    x = images_of(1)
    entries, kept = entries_of(tmp_path, x)
    images, _ = draw_images("digits", entries, Published.find(kept, entries), x)
    assert images.shown == 8
    assert images.witnesses[0].index == (7,)
