"""The tasks of a sweep: whatever the engine, the order and the losses, the runs are those of `bench run`."""

from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.core.errors import UserError
from bench.core.record_files import records_below
from bench.core.verification import StoredFinding, write_verification
from bench.runs.engines.engine import Engine
from bench.runs.request import Request
from bench.runs.sweep import Options, plan_cells, run_cells, sweep
from bench.runs.tasks import LOST, Outcome
from tests.runs import in_process_engine  # noqa: F401 (registers the engine)
from tests.runs.run_contents import contents

REQUEST = Request(
    suite="digits", model="fc1", n_examples=9, attacks=["fgsm", "pgd-2"], certifiers=["ibp"], device="cpu",
    overrides={"epochs": "1", "batch_size": "500", "probe_every": "0"}, out=Path("runs"),
)  # fmt: skip
NAMES, SEEDS = ["standard", "fgsm-rs"], [0, 1]


@pytest.fixture(autouse=True)
def _restored():
    before = torch.get_deterministic_debug_mode()
    yield
    torch.set_deterministic_debug_mode(before)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The runs that `sweep` makes in one piece."""
    folder = tmp_path_factory.mktemp("expected")
    with chdir(folder):
        result = sweep(REQUEST, NAMES, SEEDS, Options(engine="in-process"))
    assert [(record.defense, record.seed) for record in result.records] == [(n, s) for n in NAMES for s in SEEDS]
    return contents(folder / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["in-process:seed=1", "in-process:seed=2:losses=6"])
@pytest.mark.parametrize("shards", [1, 3])
def test_runs_do_not_depend_on_order_losses_and_shards(expected, tmp_path, engine, shards):
    with chdir(tmp_path):
        result = sweep(REQUEST, NAMES, SEEDS, Options(engine=engine, shards=shards))
    assert not result.failed
    assert contents(tmp_path / "runs") == expected
    assert not list(tmp_path.rglob("parts"))


@pytest.mark.slow
def test_machines_that_share_only_a_store(expected, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    store = f"memory://{tmp_path.name}"
    with chdir(tmp_path):
        options = Options(engine="in-process:seed=3:machines=3:losses=4", shards=2, store=store)
        result = sweep(REQUEST, NAMES, SEEDS, options)
        assert not result.failed
        assert contents(tmp_path / "runs") == expected
        names = {path.rpartition("/")[2].partition(".")[0] for path in fsspec.filesystem("memory").find(tmp_path.name)}
        assert "record" in names
        assert "checkpoint" not in names
        again = sweep(REQUEST, NAMES, SEEDS, Options(engine="in-process:machines=1", store=store))
        assert again.records == result.records
    assert {path.name for path in tmp_path.iterdir()} >= {"machine-0", "machine-1", "machine-2"}


@pytest.mark.slow
def test_a_made_again_run_replaces_that_of_the_store(tmp_path):
    pytest.importorskip("fsspec")
    with chdir(tmp_path):
        options = Options(engine="in-process:machines=2", store=f"memory://{tmp_path.name}")
        first = sweep(REQUEST, ["standard"], [0], options)
        forced = sweep(replace(REQUEST, force=True), ["standard"], [0], options)
    assert not forced.failed
    assert forced.records[0].provenance["finished"] >= first.records[0].provenance["finished"]
    assert forced.records[0].artifacts == first.records[0].artifacts
    assert len(records_below(tmp_path / "runs")) == 1


@pytest.mark.slow
def test_a_finished_run_has_the_verdict_of_its_verification(tmp_path):
    failed = StoredFinding("labels", "failed", "two labels differ")
    with chdir(tmp_path):
        first = sweep(REQUEST, ["standard"], [0], Options(engine="in-process"))
        (folder,) = records_below(tmp_path / "runs")
        write_verification(folder, [failed], attack="pgd-50", sample=None, seed=0)
        again = sweep(REQUEST, ["standard"], [0], Options(engine="in-process"))
    assert first.records[0].sanity.verdict != "unreliable"
    assert again.records[0].sanity.verdict == "unreliable"


def test_a_defense_may_have_settings_of_its_own():
    found, _ = plan_cells(REQUEST, ["trades:beta=5", "standard"], [0], Options())
    assert [cell.plan.name for cell in found] == ["trades", "standard"]
    assert found[0].plan.defense.config.beta == 5
    assert "--set beta=5" in found[0].plan.request.command_line(0)
    with pytest.raises(UserError, match="--defenses has trades twice"):
        plan_cells(REQUEST, ["trades", "trades:beta=5"], [0], Options())


class Scripted(Engine):
    """Tells the outcomes that a test gives by task; each task that is not named is done."""

    def __init__(self, outcomes):
        self.outcomes, self.tasks, self.submitted, self.most = outcomes, [], [], 0

    def start(self, resources):
        return 2

    def submit(self, task):
        self.tasks.append(task)
        self.submitted.append(str(task))
        self.most = max(self.most, len(self.tasks))

    def next(self):
        task = self.tasks.pop(0)
        left = self.outcomes.get(str(task), [])
        return task, left.pop(0) if left else Outcome()

    def stop(self):
        """Nothing to stop."""


def cells(shards=1, seeds=(0,)):
    return plan_cells(REQUEST, ["standard"], list(seeds), Options(shards=shards))[0]


def test_shards_work_in_rounds_until_none_waits(tmp_path):
    wait = Outcome(waits=True)
    engine = Scripted(
        {"standard seed 0, shard 2 of 2": [wait, Outcome()], "standard seed 0, shard 1 of 2": [Outcome()]}
    )
    (ended,) = run_cells(engine, cells(shards=2), 5)
    one_round = ["standard seed 0, shard 1 of 2", "standard seed 0, shard 2 of 2"]
    assert engine.submitted == ["standard seed 0, training", *one_round, *one_round, "standard seed 0"]
    assert not ended.problem


def test_no_more_tasks_are_submitted_than_the_engine_takes():
    engine = Scripted({})
    assert len(list(run_cells(engine, cells(shards=3, seeds=range(4)), 2))) == 4
    assert engine.most == 2


def test_a_task_whose_worker_is_killed_again_and_again_fails_its_cell_only():
    engine = Scripted({"standard seed 0": [LOST] * 9})
    ended = {str(cell): cell.problem for cell in run_cells(engine, cells(seeds=(0, 1)), 1)}
    assert "killed 4 times" in ended["standard seed 0"]
    assert ended["standard seed 1"] == ""
    assert engine.submitted.count("standard seed 0") == 4


def test_a_cell_ends_once_after_a_shard_failed():
    engine = Scripted({"standard seed 0, shard 1 of 3": [Outcome("no luck")]})
    (ended,) = run_cells(engine, cells(shards=3), 1)
    assert ended.problem == "no luck"
    assert engine.submitted[-1] == "standard seed 0, shard 3 of 3"


def test_the_clock_and_shards_exclude_each_other():
    with pytest.raises(UserError, match="leave out one"):
        plan_cells(replace(REQUEST, budget=10, time_limit=5.0), ["standard"], [0], Options(shards=2))


def test_every_engine_gets_the_same_number_of_threads():
    (cell,) = cells()
    assert (cell.plan.threads, cell.first_tasks()[0].request.threads) == (1, 1)
    ((cell,), _) = plan_cells(replace(REQUEST, threads=3), ["standard"], [0], Options())
    assert cell.plan.threads == 3
