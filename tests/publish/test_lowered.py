"""What verification finds changes the number: examples that fall lower the entry, whatever the record claims."""

import json
import shutil

import numpy as np
import pytest

from bench.cli import main
from bench.core.errors import CheckError
from bench.core.files import read_arrays, sha256
from bench.core.record_files import read_record
from bench.publish.submit import Submission, submit_runs
from bench.verify.inputs import settings
from leaderboard.published_results import read_entries, read_evaluated_run
from tests.forged_records import change_record
from tests.publish.forging import ABOUT, change_arrays, change_table, rehash, run_of, trained

pytestmark = pytest.mark.slow
SPEC = "bracket-attack"


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A network that is robust on about half of the test examples."""
    out = tmp_path_factory.mktemp("honest")
    return run_of(trained(out, "--epochs", "6", "--attacks", SPEC, defense="pgd-at"))


@pytest.fixture
def run(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "run")


def submit(run, **options):
    results = run.parent / "results"
    chosen = settings(threads=1, attack="pgd-10", device="cpu")
    submission = Submission(run=run, entry="mine", about=ABOUT, results=results, artifacts_url="https://example.org/m")
    submit_runs(submission, chosen, **options)
    return read_evaluated_run(results / "digits" / "mine" / "0")


def hide(run, count):
    """Claim that so many broken examples are robust: in the table, in the record and among the witnesses."""
    table = read_arrays(run / "examples.npz")
    hidden = np.flatnonzero(table["clean"] & ~table[f"robust/{SPEC}"])[:count]

    def claim(table):
        table[f"robust/{SPEC}"][hidden] = True
        table[f"decided_by/{SPEC}"][hidden] = ""

    def drop(witnesses):
        keep = ~np.isin(witnesses["index"], hidden)
        witnesses.update({key: value[keep] for key, value in witnesses.items()})

    stage_of = read_arrays(run / "examples.npz")[f"decided_by/{SPEC}"][hidden].tolist()
    change_table(run, claim)
    change_arrays(run, "witnesses", drop)

    def recount(record):
        for stage in stage_of:
            record["attacks"][SPEC]["stages"][stage]["broken"] -= 1

    change_record(run, recount)
    return hidden.tolist()


def test_an_honest_run_keeps_its_number(run, capsys):
    published = submit(run)
    assert published.robust.mean() == pytest.approx(read_record(run).worst.robust_acc, abs=1 / 360)
    assert published.checked.columns[SPEC].fell == []


def test_a_few_hidden_examples_lower_the_entry(run, capsys):
    true = read_record(run).worst.robust_acc
    hidden = hide(run, 5)
    claimed = read_record(run).worst.robust_acc
    assert claimed == pytest.approx(true + 5 / 360)
    published = submit(run)
    assert published.robust.mean() == pytest.approx(true, abs=1 / 360)
    (contest,) = published.contests
    assert set(hidden) <= set(contest.broken)
    assert contest.by == "bench submit"
    file = published.folder / "contests" / contest.witnesses.path
    assert sha256(file) == contest.witnesses.sha256
    assert set(read_arrays(file)["index"].tolist()) == set(contest.broken)
    assert published.columns[SPEC].mean() == pytest.approx(true, abs=1 / 360)
    ((entry,), _) = read_entries(run.parent / "results", "digits")
    assert entry.runs[0].robust.mean() == published.robust.mean()


def test_many_hidden_examples_are_refused(run, capsys):
    hide(run, 60)
    with pytest.raises(CheckError, match=f"{SPEC} run again"):
        submit(run)
    assert not (run.parent / "results").exists()


def test_an_evaluation_at_a_smaller_eps_is_refused_or_lowered(run, honest, tmp_path, capsys):
    """Evaluated at 0.16, claimed at 0.2, and everything else made to fit."""
    words = ("--eps", "0.16", "--attacks", SPEC, "--threads", "1", "--out", str(tmp_path / "smaller"))
    main(["eval", "--checkpoint", str(honest / "weights.safetensors"), *words])
    smaller = run_of(tmp_path / "smaller")
    for name in ("examples", "witnesses"):
        shutil.copy(smaller / f"{name}.npz", run / f"{name}.npz")
        rehash(run, name)
    attack = json.loads((smaller / "record.json").read_text())["attacks"][SPEC]
    change_record(run, lambda record: record["attacks"].update({SPEC: attack}))
    change_table(run, lambda table: table)
    true, claimed = read_record(honest).worst.robust_acc, read_record(run).worst.robust_acc
    assert claimed > true + 0.01
    try:
        published = submit(run)
    except CheckError as error:
        assert "again" in str(error)  # noqa: PT017
    else:
        assert published.robust.mean() <= true + 1 / 360


def test_a_pull_request_that_leaves_out_what_fell_is_refused(run, capsys):
    """The check finds the same examples again, because its seed follows from the weights."""
    hide(run, 5)
    published = submit(run).folder
    web = run.parent / "web" / "0"
    shutil.copytree(run, web)

    def open_url(url, _seconds):
        return (web / url.rsplit("/", 1)[1]).open("rb")

    options = {"check_only": True, "fetch": True, "open_url": open_url}
    results = run.parent / "base"
    results.mkdir()
    submission = Submission(run=published, entry="mine", results=results, contests=run.parent / "found")
    submit_runs(submission, settings(threads=1, attack="pgd-10", device="cpu"), **options)
    true = (published / "checked.json").read_bytes()
    change_record(published, lambda checked: checked["fingerprint"].reverse(), "checked.json")
    with pytest.raises(CheckError, match="fingerprint of another network"):
        submit_runs(submission, settings(threads=1, attack="pgd-10", device="cpu"), **options)
    (published / "checked.json").write_bytes(true)
    shutil.rmtree(published / "contests")
    with pytest.raises(CheckError, match="examples that it counts as robust fall"):
        submit_runs(submission, settings(threads=1, attack="pgd-10", device="cpu"), **options)
    assert list((run.parent / "found/digits/mine/0/contests").glob("*.npz"))
