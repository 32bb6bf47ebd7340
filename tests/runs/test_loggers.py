"""`--log`: what a dashboard gets, and that it changes no number and ends no training."""

import sys
import types
from pathlib import Path

import pytest

from bench.core.record_files import read_record
from bench.runs.loggers import RunLogger, numbers
from tests.end_to_end.command import bench

WORDS = ("run", "--defense", "standard", "--epochs", "2", "--attacks", "fgsm", "--n-examples", "20")


def only(folder, pattern):
    (found,) = Path(folder).glob(pattern)
    return found


class Fake:
    """A backend that keeps what it gets, and fails at the given call."""

    def __init__(self, fails_at=None):
        self.got, self.fails_at, self.calls = [], fails_at, 0

    def scalars(self, values, step):
        self.calls += 1
        if self.calls == self.fails_at:
            raise OSError("no space left")
        self.got.append((step, values))

    def summary(self, values):
        self.got.append(values)

    def close(self):
        self.got.append("closed")


def test_each_line_is_sent_once():
    fake = Fake()
    logger = RunLogger("fake", lambda: fake)
    log = [{"epoch": 1, "loss": 2.0, "note": "x", "flag": True}]
    logger.epochs(log)
    logger.epochs(log)
    log.append({"epoch": 2, "loss": 1.0})
    logger.epochs(log)
    logger.result({"clean": 0.5})
    assert fake.got == [
        (1, {"training/epoch": 1.0, "training/loss": 2.0}),
        (2, {"training/epoch": 2.0, "training/loss": 1.0}),
        {"accuracy/clean": 0.5},
        "closed",
    ]
    assert numbers({"a": None, "b": [1], "c": 1}, "") == {"c": 1.0}


def test_a_failure_is_one_warning_and_the_end_of_logging(capsys):
    fake = Fake(fails_at=2)
    logger = RunLogger("fake", lambda: fake)
    for n in range(1, 5):
        logger.epochs([{"loss": 1.0}] * n)
    logger.result({"clean": 0.5})
    assert fake.got == [(1, {"training/loss": 1.0})]
    assert capsys.readouterr().err == "warning: --log fake failed and is off from here (OSError: no space left)\n"


def test_a_dashboard_that_cannot_be_opened_is_a_warning(capsys):
    def fail():
        raise ConnectionError("offline")

    logger = RunLogger("fake", fail)
    logger.epochs([{"loss": 1.0}])
    assert "ConnectionError: offline" in capsys.readouterr().err


def fake_wandb(monkeypatch, *, fails=False):
    runs = []

    class Run:
        def __init__(self, **options):
            self.options, self.lines, self.summary, self.finished = options, [], {}, False
            runs.append(self)

        def log(self, values, step):
            if fails:
                raise RuntimeError("the server is gone")
            self.lines.append((step, values))

        def finish(self):
            self.finished = True

    module = types.ModuleType("wandb")
    module.init = lambda **options: Run(**options)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_epochs_config_and_accuracies_and_changes_nothing(monkeypatch, tmp_path):
    runs = fake_wandb(monkeypatch)
    logged = bench(tmp_path, *WORDS, "--out", "logged", "--log", "wandb")
    plain = bench(tmp_path, *WORDS, "--out", "plain")
    assert (logged.returncode, plain.returncode) == (0, 0), logged.stderr
    folders = [only(tmp_path / out, "digits-*/0") for out in ("logged", "plain")]
    records = [read_record(folder) for folder in folders]
    assert records[0].artifacts["weights"].sha256 == records[1].artifacts["weights"].sha256
    assert records[0].provenance["command"] == records[1].provenance["command"]
    assert records[0].config_hash == records[1].config_hash
    (run,) = runs
    assert [step for step, _ in run.lines] == [1, 2]
    assert {"training/loss", "training/lr"} <= set(run.lines[0][1])
    assert run.options["config"] == records[0].config
    assert run.summary["accuracy/fgsm"] == records[0].attacks["fgsm"].robust_acc
    assert run.finished
    # other attacks on the same training: its epochs come from the log
    bench(tmp_path, *WORDS[:-3], "random-noise", "--n-examples", "20", "--out", "logged", "--log", "wandb")
    assert [step for step, _ in runs[1].lines] == [1, 2]


def test_a_server_that_is_gone_ends_no_training(monkeypatch, tmp_path):
    fake_wandb(monkeypatch, fails=True)
    done = bench(tmp_path, *WORDS, "--log", "wandb")
    assert done.returncode == 0
    assert done.stderr.count("--log wandb failed and is off from here (RuntimeError: the server is gone)") == 1


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_package_is_one_line_before_the_training(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    done = bench(tmp_path, *WORDS, "--log", name)
    assert done.returncode == 2
    assert f"pip install 'robust-bracket[{name}]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_tensorboard_reads_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = bench(tmp_path, *WORDS, "--log", "tensorboard")
    assert done.returncode == 0, done.stderr
    record = read_record(only(tmp_path / "runs", "digits-*/0"))
    events = EventAccumulator(str(only(tmp_path / "runs", "tensorboard/digits-*/0")))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2]
    (clean,) = events.Scalars("accuracy/clean")
    assert clean.value == pytest.approx(record.clean.acc)
