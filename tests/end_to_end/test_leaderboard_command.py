"""`bench leaderboard`: the same board in every form; what is wrong is one line. Without torch."""

import json
import subprocess
import sys

import pytest

from tests.end_to_end.command import bench, environment
from tests.publish.published import flags, publish, table_of


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    results = tmp_path_factory.mktemp("board") / "results"
    for name, hits in (("strong", (80, 81, 82)), ("weak", (20, 21, 22))):
        publish(results, name, [table_of(flags(100, each), certified=flags(100, 5)) for each in hits])
    return results


def test_text(results):
    done = bench(results.parent, "leaderboard", "--results", "results")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "small-cnn" in line]
    assert [line.split("|")[1].strip() for line in lines] == ["1", "2"]


def test_every_format_has_the_same_content(results):
    def shown(form):
        return bench(
            results.parent, "leaderboard", "--results", "results", "--suite", "digits", "--format", form
        ).stdout

    (board,) = json.loads(shown("json"))
    assert [row["name"] for row in board["rows"]] == ["strong", "weak"]
    assert [line.split(",")[1] for line in shown("csv").splitlines()[1:]] == ["strong", "weak"]
    assert "\\addlinespace" in shown("latex")


def test_the_page_and_its_data(results):
    done = bench(results.parent, "leaderboard", "--results", "results", "--html", "out/page")
    assert done.stdout.strip() == "out/page/index.html"
    written = sorted(path.name for path in (results.parent / "out/page").iterdir())
    assert written == ["boards.csv", "boards.json", "boards.md", "boards.tex", "index.html"]


def test_torch_is_not_needed(results):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bench.cli import main\n"
        f"main(['leaderboard', '--results', {str(results)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["--results", "nothing"], "nothing"),
        (["--results", "results", "--suite", "mnist"], "digits"),
        (["--results", "results", "--export", "digits"], "is not valid"),
        (["--results", "results", "--export", "digits/nothing"], "digits/nothing"),
        (["--results", "results", "--export", "../x"], "is not valid"),
        (["--results", "results", "--add-reported", "x.json"], "--reported-as"),
        (["--results", "results", "--add-reported", "x.json", "--reported-as", "digits/theirs"], "x.json"),
        (["--results", "results", "--format", "pdf"], "latex"),
    ],
)
def test_wrong_use_is_one_line(results, words, fact):
    done = bench(results.parent, "leaderboard", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert fact in done.stderr


def test_an_exported_entry_is_imported_as_reported(results, tmp_path):
    words = ("leaderboard", "--results", str(results))
    out = bench(tmp_path, *words, "--export", "digits/strong")
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout)["clean_acc"] == "100.00"
    (tmp_path / "theirs.json").write_text(out.stdout)
    other = str(tmp_path / "other")
    added = ("--results", other, "--add-reported", "theirs.json", "--reported-as", "digits/theirs")
    done = bench(tmp_path, "leaderboard", *added)
    assert done.returncode == 0, done.stderr
    assert "reported, not verified" in bench(tmp_path, "leaderboard", "--results", other).stdout
