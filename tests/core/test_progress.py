"""Progress: plain lines without a terminal, a bar on one, nothing when it is quiet; notes, loss and messages."""

import io
import logging

import pytest
import torch

from bench.core import progress
from bench.core.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def at_once(monkeypatch):
    """Every update is shown."""
    monkeypatch.setattr(progress, "BAR_PAUSE", 0.0)
    monkeypatch.setattr(progress, "LINE_PAUSE", 0.0)
    monkeypatch.delenv("CI", raising=False)


def terminal(monkeypatch):
    """Standard error on a terminal. Not a fixture: pytest replaces sys.stderr between a fixture and its test."""
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    return stderr


def test_without_a_terminal_lines_end_and_carry_note_and_loss(at_once, capsys):
    with Progress("train atas", 1440, "step") as bar:
        bar.advance(720, "epoch 15/30", loss=torch.tensor(0.4321))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train atas: 720 of 1,440 steps, epoch 15/30, loss 0.432, 0 s"
    assert all("\r" not in line for line in lines)


def test_lines_are_rare(monkeypatch, capsys):
    clock = iter(range(10**6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setenv("CI", "true")
    with Progress("attack pgd", 100, "example") as bar:
        for _ in range(100):
            bar.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 100 / progress.LINE_PAUSE + 2
    assert lines[-1].startswith("attack pgd: 100 of 100 examples")


def test_a_terminal_gets_a_bar_with_the_loss(at_once, monkeypatch):
    stderr = terminal(monkeypatch)
    with Progress("train atas", 10, "step") as bar:
        bar.advance(5, "epoch 1/2", loss=0.5)
    assert "\r" in stderr.getvalue()
    assert "5/10" in stderr.getvalue()
    assert "epoch 1/2, loss 0.5" in stderr.getvalue()


def test_ci_gets_lines_even_on_a_terminal(at_once, monkeypatch):
    stderr = terminal(monkeypatch)
    monkeypatch.setenv("CI", "true")
    with Progress("train atas", 10, "step") as bar:
        bar.advance(5)
    assert "\r" not in stderr.getvalue()
    assert "train atas: 5 of 10 steps" in stderr.getvalue()


def test_messages_move_the_bar_until_the_next_advance(at_once, capsys):
    with Progress("attack autoattack", 100, "example") as bar:
        logging.getLogger("bench.progress").info("running fab", extra={"ahead": 50.0})
        bar.advance(60)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("attack autoattack: 50 of 100 examples, running fab")
    assert lines[1].startswith("attack autoattack: 60 of 100 examples")


def test_the_loss_is_not_read_unless_it_is_shown(monkeypatch):
    class Unreadable:
        def __float__(self):
            raise AssertionError

    with Progress("train", 10, "step", show=False) as bar:
        bar.advance(1, loss=Unreadable())
    monkeypatch.setattr(progress.LOGGER, "disabled", True)
    with Progress("train", 10, "step") as bar:
        bar.advance(1, loss=Unreadable())


def test_a_part_alone_gets_the_messages_and_ends_without_a_line(at_once, capsys):
    """An attack of a verification counts examples, and the verification counts checks."""
    with Progress("verify run", 3, "check") as outer:
        outer.advance(1, "first")
        with Progress("verify: autoattack again", 100, "example", part=True) as inner:
            logging.getLogger("bench.progress").info("running fab", extra={"ahead": 40.0})
            inner.advance(100)
        logging.getLogger("bench.progress").info("later")
    lines = [line.rpartition(", ")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "verify run: 1 of 3 checks, first",
        "verify: autoattack again: 40 of 100 examples, running fab",
        "verify: autoattack again: 100 of 100 examples, running fab",
        "verify run: 1 of 3 checks, later",
        "verify run: 1 of 3 checks, later",
    ]


def test_a_part_leaves_no_bar(at_once, monkeypatch):
    stderr = terminal(monkeypatch)
    with Progress("verify: pgd again", 10, "example", part=True) as inner:
        inner.advance(10)
    assert stderr.getvalue().endswith("\r")
