"""Every `--help` has a description and an example that parses."""

import shlex
import sys

import pytest

from bench.cli import main, parser
from bench.commands.help import EXAMPLES
from tests.end_to_end.command import bench


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_parses_and_its_command_shows_it(name, capsys):
    program, *words = shlex.split(EXAMPLES[name])
    assert (program, words[0]) == ("bench", name)
    assert parser().parse_args(words).act
    if name == "study":
        main(["study", "--help"])
    else:
        with pytest.raises(SystemExit):
            main([name, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"For example: {EXAMPLES[name]}" in printed
    assert printed.index(".") < printed.index("For example")  # the description is a sentence


def parsers(top):
    """A parser, and those of its commands."""
    yield top
    for action in top._actions:
        for each in action.choices.values() if isinstance(action.choices, dict) else ():
            yield from parsers(each)


def test_every_option_is_explained():
    for each in parsers(parser()):
        for action in each._actions:
            assert action.help or action.dest == "command", f"{each.prog}: {action.option_strings or action.dest}"


def test_completion_is_a_script_that_names_the_commands(tmp_path):
    pytest.importorskip("shtab")
    script = bench(tmp_path, "--print-completion", "bash").stdout
    assert set(EXAMPLES) <= set(script.replace("'", " ").replace('"', " ").split())


def test_completion_without_its_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    done = bench(tmp_path, "--print-completion", "zsh")
    assert done.returncode == 2
    assert "pip install 'robust-bracket[completion]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
