"""Runs whose points may leave [0, 1], as in some papers."""

import json

import numpy as np
import pytest

from bench.core.errors import UserError
from bench.core.record_files import read_record
from bench.publish.static_checks import check_submission
from tests.end_to_end.command import bench
from tests.forged_records import change_record

RUN = (
    "run", "--dataset", "digits", "--defense", "standard", "--epochs", "1", "--n-examples", "40", "--attacks", "fgsm",
    "--certifiers", "fast-lin", "--set", "probe_every=0", "--threads", "1", "--quiet",
)  # fmt: skip


def only_run(folder):
    (record,) = (path for path in (folder / "runs").glob("*/0/record.json") if "trainings" not in path.parts)
    return record.parent


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without")
    done = bench(folder, *RUN, "--box", "none")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_points_leave_the_range_of_pixels_and_the_run_is_no_boards(without, tmp_path):
    folder, text = without
    run = only_run(folder)
    record = read_record(run)
    assert (record.threat.box, record.suite) == (False, None)
    assert "Linf 0.2, no box" in text
    assert "--box none" in record.provenance["command"]
    with np.load(run / "witnesses.npz") as witnesses:
        assert witnesses["x_adv"].min() == pytest.approx(-0.2)
    with pytest.raises(UserError, match="does not belong to a suite"):
        check_submission(run, tmp_path, "mine")


def test_its_evidence_is_checked_without_the_box(without):
    folder, _ = without
    run = str(only_run(folder))
    for words in (("verify", run, "--sample", "8", "--seed", "0", "--threads", "1"), ("recheck", run)):
        done = bench(folder, *words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_claim_of_a_suite_without_its_box_is_refused(without, tmp_path):
    folder, _ = without
    record = only_run(folder) / "record.json"
    text = record.read_text()
    try:
        change_record(record.parent, lambda plain: plain.update(suite="digits"))
        with pytest.raises(UserError, match="box False; suite digits has True"):
            check_submission(record.parent, tmp_path, "mine")
    finally:
        record.write_text(text)


def test_the_default_keeps_the_box_and_the_record_does_not_mention_it(tmp_path):
    assert bench(tmp_path, *RUN).returncode == 0
    run = only_run(tmp_path)
    record = json.loads((run / "record.json").read_text())
    assert record["threat"] == {"norm": "Linf", "eps": 0.2}  # as before there was a choice
    assert "box" not in record["config"]
    with np.load(run / "witnesses.npz") as witnesses:
        assert witnesses["x_adv"].min() == 0


def test_a_suite_has_a_box(tmp_path):
    done = bench(tmp_path, "run", "--suite", "digits", "--defense", "standard", "--box", "none")
    assert done.returncode == 2
    assert "keeps points in [0, 1]; leave out --suite or --box none" in done.stderr
