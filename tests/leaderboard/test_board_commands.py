"""Tables fit the terminal, unless a format was asked for."""

import pytest

from bench.cli import main
from tests.publish.published import flags, publish, table_of, write_run


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
