"""The scripts of .github/workflows/submission.yml, in a repository of a test's own, with a `bench` that takes notes."""

import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

WORKFLOW = Path(__file__).parents[2] / ".github" / "workflows" / "submission.yml"
RESULTS = "leaderboard/results"
HASH = "0123456789ab"
BENCH = """#!/usr/bin/env bash
echo "$*" >> "$NOTES"
echo "::error::from a submission"
[[ "$*" != *bad* ]]
"""


def script(name):
    """The shell lines of a step."""
    match = re.search(rf"- name: {name}\n.*?run: \|\n(.*?)(?=\n\n|\Z)", WORKFLOW.read_text(), re.DOTALL)
    return textwrap.dedent(match[1])


class Repository:
    """A work space as GitHub lays it out: `merged` is at a merge whose first parent is the branch."""

    def __init__(self, folder):
        self.folder, self.merged, self.association = folder, folder / "merged", "CONTRIBUTOR"
        self.merged.mkdir()
        (folder / "bin").mkdir()
        (folder / "bin" / "bench").write_text(BENCH)
        (folder / "bin" / "bench").chmod(0o755)
        self.git("init", "-q", "-b", "main")
        self.write("digits/there/about.toml", "there")
        self.write("digits/there/0/record.json", "record")
        self.commit()

    def git(self, *words):
        who = ("-c", "user.name=N", "-c", "user.email=n@example.org")
        subprocess.run(["git", *who, *words], cwd=self.merged, check=True, capture_output=True)

    def write(self, path, text):
        file = self.merged / RESULTS / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def commit(self):
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "m")

    def run(self, step):
        env = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            "NOTES": str(self.folder / "notes"), "AUTHOR": "ann",
            "ASSOCIATION": self.association,
        }  # fmt: skip
        words = ["bash", "-c", script(step)]
        return subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, check=False)

    def read(self, name):
        return (self.folder / name).read_text() if (self.folder / name).exists() else ""


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


def test_each_new_entry_is_verified(repository):
    seeds = [f"{seed}/{name}" for seed in ("mine/0", "there/1") for name in ("record.json", "examples.npz")]
    for path in ("mine/about.toml", *seeds):
        repository.write(f"digits/{path}", path)
    repository.write(f"digits/there/0/contests/{HASH}.json", "{}")
    repository.commit()
    assert repository.run("Only new files of entries").returncode == 0
    assert repository.read("runs/digits/mine/0/examples.npz") == "mine/0/examples.npz"
    assert repository.read("runs/digits/there/about.toml") == "there"
    assert not (repository.folder / "runs/digits/there/0").exists()  # it is published, and no part of this
    assert (repository.folder / "base" / RESULTS / "digits/there/0/record.json").exists()
    assert not (repository.folder / "base" / RESULTS / "digits/mine").exists()
    process = repository.run("Verify")
    assert (process.returncode, process.stdout) == (0, "")  # a report may hold what GitHub takes for a command
    # so that entries of one pull request are compared with one another
    assert (repository.folder / "base" / RESULTS / "digits/mine/0/examples.npz").exists()
    common = f"--check --fetch --results base/{RESULTS}"
    assert repository.read("notes").splitlines() == [
        f"submit runs/digits/mine/ --entry mine --author ann --contests found {common}",
        f"submit runs/digits/there/ --entry there --author ann --contests found {common}",
        f"submit --contest digits/there/0 contests/digits/there/0/contests/{HASH}.json {common}",
    ]
    assert "    ::error::from a submission" in repository.read("summary").splitlines()


def test_a_refusal_fails_the_job_and_the_others_are_verified(repository):
    for name in ("bad", "good"):
        for path in ("about.toml", "0/record.json", "0/examples.npz"):
            repository.write(f"digits/{name}/{path}", "")
    repository.commit()
    assert repository.run("Only new files of entries").returncode == 0
    assert repository.run("Verify").returncode == 1
    assert len(repository.read("notes").splitlines()) == 2


def edit(repository):
    repository.write("digits/there/0/record.json", "better")


def delete(repository):
    (repository.merged / RESULTS / "digits/there/0/record.json").unlink()


def rename(repository):
    (repository.merged / RESULTS / "digits/there").rename(repository.merged / RESULTS / "digits/here")


def link(repository):
    edit_path = repository.merged / RESULTS / "digits/mine/0/record.json"
    edit_path.parent.mkdir(parents=True)
    edit_path.symlink_to("/etc/passwd")


def adding(path):
    return lambda repository: repository.write(path, "")


@pytest.mark.parametrize(("change", "reason"), [
    (edit, "never edited"),
    (delete, "never edited"),
    (rename, "never edited"),
    (link, "not a plain file"),
    (adding("digits/mine/0/evil.py"), "does not belong to an entry"),
    (adding("digits/mine/0/weights.pt"), "does not belong to an entry"),
    (adding("digits/mine/weights.safetensors"), "does not belong to an entry"),
    (adding("digits/there/0/weights.safetensors"), "digits/there/0/ is not whole: it has no record.json"),
    (adding("digits/there/reproduced.json"), "only a maintainer of the board"),
    (lambda repository: repository.write("digits/mine/0/record.json", "x" * (2**20 + 1)), "more than 1 MiB"),
    (lambda repository: repository.write("digits/mine/0/proofs.npz", "x" * (2**26 + 1)), "more than 64 MiB"),
    (adding("digits/mine/reported.json"), "does not belong to an entry"),
    (adding("digits/Mine/0/record.json"), "does not belong to an entry"),
    (adding("digits/mine/-1/record.json"), "does not belong to an entry"),
    (adding("digits/$(touch canary)/0/record.json"), "does not belong to an entry"),
    (adding("digits/a\nb/0/record.json"), "does not belong to an entry"),
    (adding("digits/there/1/examples.npz"), "digits/there/1/ is not whole: it has no record.json"),
    (adding("digits/there/1/record.json"), "digits/there/1/ is not whole: it has no examples.npz"),
    (adding("conftest.py"), "does not belong to an entry"),
    (adding("digits/mine/0/record.json"), "no leaderboard/results/digits/mine/about.toml"),
])  # fmt: skip
def test_other_changes_than_new_entries_are_refused(change, reason, repository):
    change(repository)
    repository.commit()
    process = repository.run("Only new files of entries")
    assert process.returncode == 1
    assert process.stdout.startswith("::error title=Refused::")
    assert reason in process.stdout
    assert not (repository.folder / "canary").exists()
    assert not (repository.merged / "canary").exists()


def test_the_workflow_has_no_permissions_and_no_interpolated_text():
    text = WORKFLOW.read_text()
    assert "pull_request:" in text
    assert "pull_request_target" not in text
    assert re.search(r"^permissions:\n  contents: read\n\n", text, re.MULTILINE)
    assert "secrets" not in text
    for step in ("Only new files of entries", "Verify"):
        assert "${{" not in script(step)
    assert all(re.fullmatch(r"\S+@v\d+", action) for action in re.findall(r"uses: (.*)", text))


def test_what_was_found_of_a_new_seed_comes_with_it(repository):
    for path in ("record.json", "examples.npz", "checked.json", f"contests/{HASH}.json", f"contests/{HASH}.npz"):
        repository.write(f"digits/mine/0/{path}", path)
    repository.write("digits/mine/about.toml", "mine")
    repository.commit()
    assert repository.run("Only new files of entries").returncode == 0
    assert repository.read(f"runs/digits/mine/0/contests/{HASH}.npz") == f"contests/{HASH}.npz"
    assert repository.read("runs/digits/mine/0/checked.json") == "checked.json"
    assert not (repository.folder / "contests").exists()


def test_the_files_of_a_seed_may_come_with_it(repository):
    """As `bench submit --with-files 0` writes them."""
    files = ("record.json", "examples.npz", "weights.safetensors", "witnesses.npz", "proofs.npz", "network.json")
    for path in ("about.toml", *(f"0/{name}" for name in files)):
        repository.write(f"digits/mine/{path}", path)
    repository.commit()
    process = repository.run("Only new files of entries")
    assert process.returncode == 0, process.stdout
    assert all(repository.read(f"runs/digits/mine/0/{name}") == f"0/{name}" for name in files)


def test_a_maintainer_of_the_board_marks_a_published_entry_as_reproduced(repository):
    repository.association = "MEMBER"
    repository.write("digits/there/reproduced.json", "{}")
    repository.commit()
    assert repository.run("Only new files of entries").returncode == 0
    assert not (repository.folder / "runs").exists()
    repository.write("digits/mine/reproduced.json", "{}")
    repository.commit()
    process = repository.run("Only new files of entries")
    assert process.returncode == 1


def test_nothing_is_added_to_a_published_seed_but_contests(repository):
    repository.write(f"digits/there/0/contests/{HASH}.npz", "x")
    repository.commit()
    assert repository.run("Only new files of entries").returncode == 1
