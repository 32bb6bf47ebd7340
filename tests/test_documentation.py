"""The examples of README.md and CONTRIBUTING.md: commands parse, and code runs as it is printed."""

import re
import shlex
from pathlib import Path

import pytest

from bench.cli import main, parser
from bench.core.registry import import_file

ROOT = Path(__file__).parents[1]
TINY = ("--epochs", "1", "--n-examples", "20", "--set", "probe_every=0", "--threads", "1", "--quiet")


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def commands_of(name):
    """The words of each line that begins with `bench`, in indented and fenced blocks."""
    joined = re.sub(r"\\\n\s*", "", text_of(name))
    for line in re.findall(r"^(?: {4}(?:\$ )?)?(bench [a-z].*)$", joined, re.MULTILINE):
        yield shlex.split(line, comments=True)[1:]


def plugins():
    """(file name, source, words of the command that uses it) of each Python block of CONTRIBUTING.md."""
    for source, command in re.findall(
        r"```python\n(.*?)```.*?```console\nbench (.*?)\n```", text_of("CONTRIBUTING.md"), re.S
    ):
        yield re.search(r"(\w+\.py)", command)[1], source, shlex.split(command)


PAGES = [f"docs/{name}.md" for name in ("usage", "evaluation", "training", "leaderboard", "glossary", "scale")]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_every_command_parses(name):
    commands = [words for words in commands_of(name) if "-" not in words[0]]
    assert len(commands) >= (5 if "/" not in name else 0)
    for words in commands:
        assert parser().parse_args(words).act, words


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES])
def test_linked_files_exist(name):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text_of(name)):
        assert (ROOT / name).parent.joinpath(target).is_file(), target


@pytest.mark.slow
@pytest.mark.parametrize(("file", "source", "words"), [pytest.param(*each, id=each[0]) for each in plugins()])
def test_the_examples_of_contributing_run_as_printed(file, source, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(file).write_text(source)
    main([*words, *TINY, *([] if "--attacks" in words else ["--attacks", "fgsm"])])
    assert "| clean" in capsys.readouterr().out


def test_there_are_examples_of_a_defense_an_attack_a_certifier_and_a_model():
    assert [file for file, _, _ in plugins()] == ["mine.py", "uniform.py", "product.py", "net.py"]


@pytest.mark.slow
def test_the_python_of_readme_runs_as_printed(capsys):
    (source,) = re.findall(r"```python\n(.*?)```", text_of("README.md"), re.S)
    exec(compile(source, "README.md", "exec"), {})
    assert "verdict: " in capsys.readouterr().out


def test_the_figures_of_the_page_on_scale_are_those_of_its_script():
    script = import_file(ROOT / "docs/scale.py", what="script")
    printed = re.search(r"<!-- python docs/scale.py -->\n(.*?)\n<!-- end -->", text_of("docs/scale.md"), re.S)[1]
    assert printed == script.table()
