"""Actions that are killed at a file operation: nothing is lost, nothing is half visible, and the same action finishes.

BENCH_ALL_KILLS=1 kills at every operation, and through the whole command where a test only calls what writes.
"""

import json
import os
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from bench.core.files import read_arrays, sha256
from bench.core.record_files import read_run, records_below
from bench.core.records import Artifact
from leaderboard.gate_baseline import read_baseline, update_baseline
from leaderboard.published_results import Contest, add_contest, contest_file, read_entries
from leaderboard.publishing import add_runs
from tests.killing import command, kill_at, operations
from tests.publish.published import ABOUT, flags, publish, table_of, write_run

ALL = os.environ.get("BENCH_ALL_KILLS") == "1"
QUICK = (
    "--suite", "digits", "--model", "fc1", "--epochs", "2", "--set", "probe_every=0", "--set", "batch_size=500",
    "--n-examples", "5", "--threads", "1", "--attacks", "fgsm", "--device", "cpu",
)  # fmt: skip
HIDDEN = (".part", ".change", ".lock")


def moments(count, most):
    """The operations to kill at: all, or `most` of them from the first to the last."""
    return range(count) if ALL or count <= most else sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def names(folder):
    """Everything in a folder that is not the log of the harness."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "output.log")


def results(folder):
    """All of the runs in a folder that does not depend on when they were made."""
    found = {}
    for run in records_below(folder):
        record = read_run(run)
        log = [json.loads(line) | {"seconds": 0} for line in (run / "log.jsonl").read_text().splitlines()]
        weights, accuracy = record.artifacts["weights"].sha256, record.attacks["fgsm"].robust_acc
        table = {key: value.tolist() for key, value in read_arrays(run / "examples.npz").items()}
        found[str(run.relative_to(folder))] = weights, accuracy, table, log
    return found


def check_every_kill(tmp_path, start, act, whole, most):
    """Kill the action in copies of `start`; then `whole` checks each, before and after the action is repeated."""
    reference = shutil.copytree(start, tmp_path / "reference")
    count = operations(reference, act)
    for k in moments(count, most):
        folder = shutil.copytree(start, tmp_path / f"killed-{k}")
        kill_at(k, folder, act)
        whole(folder, False)
        operations(folder, act)
        whole(folder, True)
        assert names(folder) == names(reference), f"operation {k} of {count}"
        shutil.rmtree(folder)
    print(f"{len(moments(count, most))} of {count} operations")
    return reference


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Everything that a run imports, so that a process that is forked from here takes a second."""
    before = torch.get_deterministic_debug_mode()
    with chdir(tmp_path_factory.mktemp("loaded")):
        run_command("run")()
    yield
    torch.set_deterministic_debug_mode(before)


@pytest.fixture
def start(tmp_path):
    (tmp_path / "start").mkdir()
    return tmp_path / "start"


def run_command(name):
    return {
        "run": command("run", "--defense", "standard", *QUICK),
        "force": command("run", "--defense", "standard", *QUICK, "--force"),
        "sweep": command("sweep", "--defenses", "standard", "--seeds", "0,1", "--jobs", "1", *QUICK),
    }[name]


@pytest.mark.slow
@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("name", ["run", "sweep"])
def test_a_killed_run_is_unfinished_or_whole_and_continues(name, start, tmp_path):
    def whole(folder, finished):
        found = results(folder)
        assert found.items() <= expected.items()
        assert found == expected or not finished

    expected = {}
    reference = shutil.copytree(start, tmp_path / "first")
    operations(reference, run_command(name))
    expected.update(results(reference))
    check_every_kill(tmp_path, start, run_command(name), whole, most=6)


@pytest.mark.slow
@pytest.mark.usefixtures("loaded")
def test_a_run_that_is_made_again_is_never_lost(start, tmp_path):
    operations(start, run_command("run"))
    ((place, expected),) = results(start).items()
    old = sha256(start / place / "record.json")

    def whole(folder, finished):
        kept = [sha256(path) for path in folder.rglob("record.json")]
        assert old in kept
        assert all(result == expected for result in results(folder).values())
        assert place in results(folder) or not finished

    count = operations(shutil.copytree(start, tmp_path / "reference"), run_command("force"))
    for k in moments(count, 6):
        folder = shutil.copytree(start, tmp_path / f"killed-{k}")
        kill_at(k, folder, run_command("force"))
        whole(folder, False)
        operations(folder, run_command("run"))
        whole(folder, True)
        assert not [path for path in folder.rglob("*") if path.name in ("parts", "checkpoint.pt")]
        shutil.rmtree(folder)
    print(f"{len(moments(count, 6))} of {count} operations")


def test_a_killed_submission_adds_all_seeds_or_none(start, tmp_path):
    settings = {"defense": "mine", "config_hash": "mine"}
    publish(start / "results", "mine", [table_of(flags(10, 4))])
    publish(start / "results", "other", [table_of(flags(10, 4))])
    for seed in (1, 2):
        write_run(start / f"new/{seed}", table_of(flags(10, 4 + seed)), seed=seed, weights=f"w{seed}", **settings)

    def act():
        add_runs(Path("results"), "mine", ABOUT, sorted(Path("new").iterdir()))

    def whole(folder, finished):
        entries, problems = read_entries(folder / "results", "digits")
        seeds = {entry.name: [run.record.seed for run in entry.runs] for entry in entries}
        assert not problems
        assert seeds["other"] == [0]
        assert seeds["mine"] in ([0, 1, 2],) if finished else ([0], [0, 1, 2])
        if finished:
            assert not [name for name in names(folder) if name.endswith(HIDDEN)]

    check_every_kill(tmp_path, start, act, whole, most=1000)


def test_a_killed_contest_counts_or_does_not(start, tmp_path):
    publish(start / "results", "mine", [table_of(flags(10, 4))])
    contest = Contest(by="Somebody", broken=[1], witnesses=Artifact("ab" * 32, 9), finished="2026-11-21")

    def act():
        if not contest_file(Path("results/digits/mine/0"), contest.witnesses.sha256).exists():
            add_contest(Path("results"), "digits", "mine", 0, contest)

    def whole(folder, finished):
        ((entry,), problems) = read_entries(folder / "results", "digits")
        assert not problems
        assert entry.runs[0].robust.sum() in ((3,) if finished else (3, 4))

    check_every_kill(tmp_path, start, act, whole, most=1000)


def test_a_killed_update_leaves_the_old_baseline_or_the_new_one(start, tmp_path):
    for out, hits in (("old", 40), ("new", 50)):
        for defense in ("a", "b"):
            fixed = {"defense": defense, "training": None, "weights": f"{out}-{defense}"}
            write_run(start / out / defense, table_of(flags(100, hits)), **fixed)
    update_baseline(start / "baseline", [start / "old"], "first")

    def act():
        update_baseline(Path("baseline"), [Path("new")], "second")

    def whole(folder, finished):
        groups = read_baseline(folder / "baseline")
        assert len(groups) == 2
        hits = {int(run.table["robust/pgd-50"].sum()) for (run,) in groups.values()}
        assert hits in ({50},) if finished else ({40}, {50})
        reasons = (folder / "baseline/CHANGES.md").read_text().count("## ")
        assert reasons == (1 if hits == {40} else 2)

    check_every_kill(tmp_path, start, act, whole, most=1000)


def test_a_killed_page_has_no_half_a_file(start, tmp_path):
    publish(start / "results", "mine", [table_of(flags(10, 4))])
    act = command("leaderboard", "--results", "results", "--html", "page")
    operations(start, act)
    old = {path.name: path.read_bytes() for path in (start / "page").iterdir()}
    publish(start / "results", "other", [table_of(flags(10, 4))])
    new = {}

    def whole(folder, finished):
        now = {path.name: path.read_bytes() for path in (folder / "page").iterdir() if not path.name.startswith(".")}
        assert now.keys() == old.keys()
        assert all(now[name] in (old[name], new[name]) for name in now)
        assert now == new or not finished

    reference = shutil.copytree(start, tmp_path / "first")
    operations(reference, act)
    new.update({path.name: path.read_bytes() for path in (reference / "page").iterdir()})
    check_every_kill(tmp_path, start, act, whole, most=8)
