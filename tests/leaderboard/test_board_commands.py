"""Tables fit the terminal, unless a format was asked for; the page shows images and names its repository."""

import shutil

import msgspec
import numpy as np
import pytest

from bench.cli import main
from bench.core.files import sha256, write_arrays
from bench.core.record_files import read_record, write_record
from bench.core.records import Artifact
from bench.datasets.load import load_arrays
from leaderboard.publishing import add_runs
from tests.publish.published import ABOUT, flags, publish, record_of, table_of, write_run


@pytest.fixture(params=[80, 120])
def width(request, monkeypatch):
    monkeypatch.setattr("leaderboard.render.terminal_width", lambda: request.param)
    return request.param


def printed(capsys, *words):
    capsys.readouterr()
    main(list(map(str, words)))
    return capsys.readouterr().out.splitlines()


def test_the_leaderboard_fits_the_terminal(width, tmp_path, capsys):
    publish(tmp_path / "results", "mine", [table_of(flags(50, hits)) for hits in (20, 25)])
    command = ("leaderboard", "--results", tmp_path / "results")
    lines = printed(capsys, *command)
    assert max(map(len, lines)) <= width
    assert not any(line.startswith("|") for line in lines)
    assert max(map(len, printed(capsys, *command, "--format", "markdown"))) > 120


def test_a_comparison_fits_the_terminal(width, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, hits in (("a", 30), ("b", 20)):
        write_run(tmp_path / name, table_of(flags(50, hits)), weights=name)
    lines = printed(capsys, "compare", "a", "b")
    assert max(map(len, lines)) <= width
    assert not any(line.startswith("|") for line in lines)


def test_the_page_shows_the_images_of_published_witnesses(tmp_path, capsys):
    arrays = load_arrays("digits", None)
    provenance = record_of(table_of(flags(5, 3))).provenance | {"data_hash": arrays.hash}
    path = tmp_path / "kept" / "witnesses.npz"
    path.parent.mkdir()
    x_adv = np.moveaxis(arrays.x_test[3:5] / 255, -1, 1).astype(np.float32)
    write_arrays(path, {"index": np.array([3, 4]), "x_adv": x_adv, "attack": np.array(["pgd-50"] * 2)})
    artifacts = {
        name: Artifact(sha256=sha256(path) if name == "witnesses" else "00", bytes=5, path=f"{name}.npz")
        for name in ("weights", "witnesses")
    }
    run = write_run(tmp_path / "run", table_of(flags(5, 3)), provenance=provenance)
    record = read_record(run)
    write_record(run, msgspec.structs.replace(record, artifacts=record.artifacts | artifacts))
    add_runs(tmp_path / "results", "mine", ABOUT, [run])
    command = ("leaderboard", "--results", tmp_path / "results", "--html", tmp_path / "page")
    printed(capsys, *command)
    assert not (tmp_path / "page" / "images").exists()
    printed(capsys, *command, "--witnesses", tmp_path / "kept")
    written = sorted(path.name for path in (tmp_path / "page" / "images" / "digits").iterdir())
    assert written == ["mine.png", "originals.png"]
    assert "data-images" in (tmp_path / "page" / "index.html").read_text()

    write_record(run, msgspec.structs.replace(read_record(run), provenance=provenance | {"data_hash": "other"}))
    add_runs(tmp_path / "others", "mine", ABOUT, [run])
    words = ("leaderboard", "--results", tmp_path / "others", "--html", tmp_path / "page", "--witnesses", path.parent)
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, words)))
    assert exit_.value.code == 2
    assert "not the data that the suite was evaluated on" in capsys.readouterr().err


def test_a_repository_is_an_address(tmp_path, capsys):
    publish(tmp_path / "results", "mine", [table_of(flags(5, 3))])
    with pytest.raises(SystemExit) as exit_:
        main(["leaderboard", "--results", str(tmp_path / "results"), "--html", "page", "--repository", "javascript:0"])
    assert exit_.value.code == 2
    assert "write https://HOST/..." in capsys.readouterr().err


def test_the_page_does_not_replace_files_of_others(tmp_path, capsys):
    publish(tmp_path / "results", "mine", [table_of(flags(5, 3))])
    home = tmp_path / "site"
    (home / "images").mkdir(parents=True)
    (home / "images" / "mine.txt").write_text("mine")
    words = ["leaderboard", "--results", str(tmp_path / "results"), "--html", str(home)]
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert "has other files (images)" in capsys.readouterr().err
    assert (home / "images" / "mine.txt").read_text() == "mine"
    shutil.rmtree(home / "images")
    (home / ".git").mkdir()
    main(words)
    main(words)  # an earlier page is replaced


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--witnesses", "runs"], "--witnesses is for --html"),
        (["--repository", "https://example.org"], "--repository is for --html"),
        (["--speedrun", "--html", "page"], "--html and --speedrun are different tasks"),
        (["--export", "digits/mine", "--format", "csv"], "--format is not for --export"),
        (["--html", "page", "--format", "csv"], "--format is not for --html"),
        (["--reported-as", "digits/mine"], "--reported-as is for --add-reported"),
        (["--speedrun", "--data-dir", "data"], "--data-dir is not for --speedrun"),
    ],
)
def test_an_option_without_effect_is_refused(words, wrong, tmp_path, capsys):
    publish(tmp_path / "results", "mine", [table_of(flags(5, 3))])
    with pytest.raises(SystemExit) as exit_:
        main(["leaderboard", "--results", str(tmp_path / "results"), *words])
    assert exit_.value.code == 2
    assert wrong in capsys.readouterr().err
