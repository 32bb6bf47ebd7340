"""The gate fails if the project has a bug, and passes without one.

Here one small model is evaluated again with the bugs patched in. GATE_BUGS=1 runs all trainings of .ci/gate with each
bug in a copy of the project, GATE_RERUNS=10 runs them ten times without a bug; each takes minutes.
"""

import os
import subprocess
import sys

import pytest
import torch

from attacks import ascent
from bench.core import modes
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.runs.plan import make_plan
from bench.runs.request import Request
from bench.runs.run import run_seed
from leaderboard.gate_report import gate_table
from leaderboard.regression_gate import check_against_baseline
from tests.end_to_end.command import environment
from tests.gate.bugs import BUGS, ROOT, copy

BASELINE = ROOT / ".ci" / "baseline"


@pytest.fixture(scope="module", autouse=True)
def _determinism_as_it_was():
    before = torch.get_deterministic_debug_mode()
    yield
    torch.set_deterministic_debug_mode(before)


def run(out, **words):
    request = Request(dataset="digits", eps=[0.1], attacks=["pgd-10", "apgd-ce:steps=10"], threads=1, out=out, **words)
    return run_seed(make_plan(request), 0)[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a model with batch norm, a few epochs old."""
    out = tmp_path_factory.mktemp("gate") / "baseline"
    return run(out, defense="atas", model="small-cnn:batchnorm=true", overrides={"epochs": "4"})


def findings(report):
    (group,) = report.findings.values()
    return {finding.what: finding.outcome for finding in group}


@pytest.mark.slow
def test_the_gate_passes_what_has_not_changed(trained, tmp_path):
    report = check_against_baseline(trained, [run(tmp_path, checkpoint=trained / "weights.safetensors")])
    assert {what for what, outcome in findings(report).items() if outcome != "ok"} == {"settings"}  # it was trained


@pytest.mark.slow
def test_the_gate_catches_a_step_down_the_loss(trained, tmp_path, monkeypatch):
    original = ascent.direction
    monkeypatch.setattr(ascent, "direction", lambda gradient, step: -original(gradient, step))
    report = check_against_baseline(trained, [run(tmp_path, checkpoint=trained / "weights.safetensors")])
    assert findings(report)["pgd-10, seed 0"] == "failed"


@pytest.mark.slow
def test_the_gate_catches_a_projection_onto_half_the_ball(trained, tmp_path, monkeypatch):
    original = ThreatModel._interval

    def half(self, x):
        return original(ThreatModel(self.norm, self.eps / 2, self.box), x)

    monkeypatch.setattr(ThreatModel, "_interval", half)
    report = check_against_baseline(trained, [run(tmp_path, checkpoint=trained / "weights.safetensors")])
    assert findings(report)["apgd-ce:steps=10, seed 0"] == "failed"


@pytest.mark.slow
def test_the_gate_catches_eps_in_the_wrong_unit(trained, tmp_path, monkeypatch):
    original = ThreatModel.eps_like
    monkeypatch.setattr(ThreatModel, "eps_like", lambda self, x: original(self, x) / 255)
    report = check_against_baseline(trained, [run(tmp_path, checkpoint=trained / "weights.safetensors")])
    assert findings(report)["pgd-10, seed 0"] == "failed"


@pytest.mark.slow
def test_batch_norm_in_train_mode_leaves_no_run_to_check(trained, tmp_path, monkeypatch):
    original = modes.mode_of

    def train_mode(model, training):
        return original(model, training=True)

    monkeypatch.setattr(modes, "mode_of", train_mode)
    with pytest.raises(UserError, match="more than 1 value per channel"):  # of the first call, with a single image
        run(tmp_path, checkpoint=trained / "weights.safetensors")


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_can_be_planted(tmp_path, bug):
    copy(tmp_path, BUGS[bug])


def train(tree, out, seeds):
    """.ci/gate with the packages of `tree`. A run that ends in an error is missing, which the gate sees."""
    subprocess.run([ROOT / ".ci" / "gate", sys.executable, out, seeds], cwd=tree, env=environment(), check=False)


@pytest.mark.skipif("GATE_BUGS" not in os.environ, reason="minutes: GATE_BUGS=1")
@pytest.mark.parametrize("bug", BUGS)
def test_the_gate_of_the_project_catches_a_bug(tmp_path, bug):
    train(copy(tmp_path / "tree", BUGS[bug]), tmp_path / "runs", "0,1,2")
    report = check_against_baseline(BASELINE, [tmp_path / "runs"])
    print(gate_table(report))
    assert report.failed


@pytest.mark.parametrize("rerun", range(int(os.environ.get("GATE_RERUNS", "0"))))
def test_the_gate_of_the_project_passes_other_seeds(tmp_path, rerun):
    first = 100 + 3 * rerun
    train(copy(tmp_path / "tree"), tmp_path / "runs", ",".join(map(str, range(first, first + 3))))
    report = check_against_baseline(BASELINE, [tmp_path / "runs"])
    print(gate_table(report))
    assert not report.failed
