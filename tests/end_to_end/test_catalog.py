"""`bench list`, `bench study --help`, `--version`: what there is, with options, on a terminal and in a pipe."""

import json
import os

import pytest

from bench.cli import main
from bench.core import columns
from tests.end_to_end.command import bench_process


@pytest.fixture
def terminal(monkeypatch):
    """Standard output is a terminal of 80 columns."""
    monkeypatch.setattr(columns.shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    monkeypatch.setattr(columns, "output_width", lambda: 80)
    monkeypatch.setattr("bench.commands.catalog.output_width", lambda: 80)


def printed(capsys, *words):
    main(list(words))
    return capsys.readouterr().out


def test_the_list_fits_the_terminal(terminal, capsys):
    assert max(map(len, printed(capsys, "list").splitlines())) <= 80


def test_in_a_pipe_an_entry_is_a_line(capsys):
    lines = printed(capsys, "list", "attacks").splitlines()
    assert any(line.startswith("pgd ") for line in lines)
    assert all(not line.startswith(" ") for line in lines)


@pytest.mark.parametrize(("kind", "name", "facts"), [
    ("defenses", "atas", ["beta=0.5", "momentum of the moving average", "lr=0.1", "bench run --defense atas --set"]),
    ("attacks", "pgd", ["alpha=0.25eps", "pgd:OPTION=VALUE"]),
    ("certifiers", "exact", ["nodes=1000", "for all programs of one example"]),
    ("attacks", "pgd-50:restarts=3", ["restarts=1"]),
    ("models", "cnn", ["width=16"]),
    ("datasets", "fake", ["train="]),
    ("studies", "overhead", ["pairs=5", "bench study overhead"]),
    ("suites", "digits", ["small-cnn", "pgd-10, pgd-50, autoattack"]),
])  # fmt: skip
def test_each_kind_shows_the_options_of_an_entry(kind, name, facts, terminal, capsys):
    text = printed(capsys, "list", kind, name)
    assert all(fact in " ".join(text.split()) for fact in facts)
    assert max(map(len, text.splitlines())) <= 80


def test_a_name_is_found_in_any_kind(capsys):
    assert printed(capsys, "list", "atas") == printed(capsys, "list", "defenses", "atas")
    assert printed(capsys, "list", "pgd-50") == printed(capsys, "list", "attacks", "pgd-50")


def test_kinds_are_set_apart_by_empty_lines(capsys):
    text = printed(capsys, "list")
    assert "\n\nattacks:\n" in text
    assert not text.startswith("\n")


def test_the_program_alone_prints_its_help(capsys):
    assert printed(capsys).startswith("usage: bench")


def test_options_as_json(capsys):
    entry = json.loads(printed(capsys, "list", "attacks", "pgd", "--json"))
    assert {"name": "restarts", "type": "a whole number", "default": "1"}.items() <= entry["options"][1].items()


def test_help_of_a_study_is_its_options_and_docstring(capsys):
    help_text = printed(capsys, "study", "overhead", "--help")
    assert help_text == printed(capsys, "list", "studies", "overhead")
    assert "usage: bench study" in printed(capsys, "study", "--help")


def test_python_m_bench_and_version(tmp_path):
    done = bench_process(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("robust-bracket ")
