"""`bench show` prints everything that a record holds, and which settings differ from the suite's."""

import json

import msgspec
import pytest

from bench.cli import main
from bench.commands import show
from bench.core import config
from bench.core.config import as_json, get_suite, make_config
from bench.core.example_table import Threat
from bench.core.package_origins import ROOT
from bench.core.record_verdict import with_result_alarms
from bench.core.records import Artifact, AttackResult, Sanity, SanityCheck, StageResult
from bench.core.registry import defense
from leaderboard.record_report import Setting, record_report
from tests.leaderboard.test_single_run_tables import IBP, NARROWED, changed, make_record
from tests.publish.published import flags, table_of, write_run

WARNING = "Square Attack has decreased the robust accuracy of 0.28%."
AUTOATTACK = AttackResult(
    0.5, (0.45, 0.55), 900, 400, 12.5, warnings=[WARNING], stages={"apgd-ce": StageResult(328, 140, 700, 300, 9.5)}
)
CHECK = SanityCheck("stochastic", "passed", 1e-7, 1e-4, "4 passes over the same 64 images differ by 1e-07")
FULL = make_record(
    attacks={"autoattack": AUTOATTACK}, certifiers={"ibp": IBP}, bracket=NARROWED, worst_by=["autoattack"], audited=3,
    sanity=with_result_alarms(Sanity("no-warnings", [], [CHECK]), {"autoattack": AUTOATTACK}),
    artifacts={"weights": Artifact("0123456789abcdef", 288_296, url="https://example.org/w.safetensors")},
    provenance={"hardware": "a machine", "versions": {"torch": "2.11.0", "foolbox": None}, "source_files": {"a": "b"},
                "command": "bench run --defense pgd-at --set epochs=2 --seeds 0"},
)  # fmt: skip


@pytest.mark.parametrize("width", [None, 80, 120])
def test_a_report_holds_all_of_a_record(width, tmp_path):
    settings = [Setting("epochs", 2, 30), Setting("milestones", [0.5, 0.75], [0.8])]
    text = record_report(FULL, tmp_path, settings, "digits", width, every=True)
    for part in (
        "(71,482 parameters)", "differ from those of the suite digits", "epochs", "0.5,0.75", "apgd-ce", "autoattack",
        "Stages of the bracket", "36 open", "skipped ibp", "verdict: suspect", "stochastic", "Warnings:",
        "torch 2.11.0",
        "source_files: 1 file", "https://example.org/w.safetensors", "bench run --defense pgd-at --set epochs=2",
        "3 certified examples were attacked", "certified by ibp", "1,000,000",
    ):  # fmt: skip
        assert part in " ".join(text.split()) or part in text, part
    assert "foolbox" not in text
    if width is not None:
        whole = ("run folder: ", "    bench run")  # paths and commands are not broken
        assert max(len(line) for line in text.splitlines() if not line.startswith(whole)) <= width


def test_checks_without_an_alarm_are_counted_only(tmp_path):
    checks = [CHECK, SanityCheck("zero-gradient", "skipped", None, None, "why"), *FULL.sanity.checks[1:]]
    record = make_record(sanity=Sanity("suspect", ["attack-warnings: it warned"], checks))
    text, every = (record_report(record, tmp_path, [], "digits", every=every) for every in (False, True))
    assert "1 checks passed, 1 skipped (--all lists them)" in text
    assert "4 passes over the same" not in text
    assert "attack-warnings  suspect" in text
    assert "4 passes over the same" in every
    assert "--all" not in every


def test_evidence_is_wrapped_in_a_pipe_too(tmp_path):
    long = SanityCheck("stochastic", "suspect", 1.0, 1e-4, "passes over the same images differ " * 9)
    record = make_record(sanity=Sanity("suspect", [], [long]), provenance={})
    assert max(map(len, record_report(record, tmp_path, [], "digits").splitlines())) <= 140


def test_the_report_of_a_published_run_has_its_contests_and_what_was_checked(capsys):
    folder = "leaderboard/results/digits/atas/0"
    main(["show", str(ROOT / folder)])
    text = capsys.readouterr().out
    for part in (
        "after contests                        |         65.6 |",
        "contest: bench submit broke 2 examples that the run counts as robust (88, 297), 2026-11-29",
        "attacked again by bracket-attack, seed 1332552347",
        "bracket-attack (0 of 238 fell)",
        "certificates that count: 0 proven, 0 certified again, 0 by a solver",
    ):
        assert part in text
    main(["show", str(ROOT / folder), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["contests"][0]["broken"], shown["after_contests"]["acc"]) == ([88, 297], pytest.approx(236 / 360))
    main(["show", str(ROOT / "leaderboard/results/digits/atas/1")])
    text = capsys.readouterr().out
    assert "contest" not in text
    assert "checked.json: " in text


def test_the_stages_of_the_bracket_have_their_work(tmp_path):
    def columns(record):
        text = record_report(record, tmp_path, [], "digits")
        lines = text.partition("Stages of the bracket:")[2].strip().split("\n\n")[0].splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    known = ["stage", "tried", "certified", "broken", "forwards", "backwards", "seconds"]
    assert columns(FULL)[0] == known
    search = msgspec.structs.replace(NARROWED.stages["exact"], nodes=12345, proofs=140)
    head, *_, last = columns(make_record(bracket=changed(NARROWED, stages=NARROWED.stages | {"exact": search})))
    assert head == [*known, "sub-problems", "proofs"]
    assert last == ["exact", "228", "144", "48", "1,000", "0", "0.0", "12,345", "140"]


def test_a_report_without_differences_says_so(tmp_path):
    assert "All settings are those of the suite digits." in record_report(FULL, tmp_path, [], "digits")
    text = record_report(msgspec.structs.replace(FULL, suite=None), tmp_path, [Setting("epochs", 2, None)], None)
    assert "no suite has this data set" in text


def run(folder, name="pgd-at", of_suite=None, **overrides):
    suite, config_class = get_suite("digits"), defense.get(name).config_class
    training = as_json(make_config(config_class, name, suite.training, suite.defenses.get(name, {}), overrides))
    settings = {
        "model": "small-cnn", "norm": "Linf", "eps": 0.2, "attacks": ["pgd-50"], "training": training,
        "n_examples": 20,
    }  # fmt: skip
    artifacts = {"weights": Artifact("00", 5, url="https://example.org/w")}
    return write_run(
        folder, table_of(flags(20, 12)), defense=name, config=settings, artifacts=artifacts, suite=of_suite
    )


def test_the_command_compares_with_the_rules_of_the_suite(tmp_path, capsys):
    main(["show", str(run(tmp_path / "a", epochs=2, steps=3))])
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("|")]
    assert rows[2:5] == [["attacks", "pgd-50", "pgd-10,pgd-50,autoattack"], ["epochs", "2", "30"], ["steps", "3", "10"]]
    main(["show", str(tmp_path / "a"), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert {"name": "epochs", "value": 2, "suites": 30} in shown["settings"]
    assert shown["record"]["clean"]["acc"] == 1.0


def test_a_run_of_an_own_suite_is_compared_with_that_suite_only(tmp_path, monkeypatch, capsys):
    known = dict(config.suites())
    monkeypatch.setattr(config, "suites", lambda: known)
    monkeypatch.setattr(show, "suites", config.suites)
    rules = (ROOT / "bench/suites/digits.toml").read_text().replace("epochs = 30", "epochs = 2", 1)
    folder = run(tmp_path / "a", of_suite="own", epochs=2)
    main(["show", str(folder)])
    assert "Settings (the suite own is not known here; --suites DIR adds it):" in capsys.readouterr().out
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites/own.toml").write_text(rules)
    main(["show", str(folder), "--suites", str(tmp_path / "suites"), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["suite"], [setting["name"] for setting in shown["settings"]]) == ("own", ["attacks"])


def test_the_command_takes_one_run(tmp_path, capsys):
    run(tmp_path / "a")
    run(tmp_path / "b")
    with pytest.raises(SystemExit) as caught:
        main(["show", str(tmp_path)])
    assert caught.value.code == 2
    assert "holds 2 runs; give one of them" in capsys.readouterr().err


def test_a_defense_that_is_not_registered_is_compared_with_the_training_settings_of_the_suite(tmp_path, capsys):
    training = {"epochs": 2, "batch_size": 128, "probe_every": 5, "beta": 6.0}
    config = {"training": training, "model": "small-cnn", "norm": "Linf", "eps": 0.2}
    artifacts = {"weights": Artifact("00", 5, url="https://example.org/w")}
    main(["show", str(write_run(tmp_path / "a", table_of(flags(20, 12)), config=config, artifacts=artifacts))])
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("|")]
    assert rows[3:5] == [["epochs", "2", "30"], ["beta", "6.0", "unknown"]]
    assert "The defense 'mine' is unknown here" in text
    assert "give --plugin FILE to compare" in text


def test_corruptions_and_points_outside_the_box_differ_from_the_suite(tmp_path, capsys):
    own = {"suite": None, "model": "small-cnn", "norm": "Linf", "eps": 0.2, "attacks": ["pgd-50"], "training": {}}
    artifacts = {"weights": Artifact("00", 5, url="https://example.org/w")}
    found = []
    for changes in ({}, {"box": False, "corruptions": ["fog"]}):
        threat = Threat("Linf", 0.2, changes.get("box", True))
        folder = tmp_path / f"run{len(found)}"
        write_run(folder, table_of(flags(20, 12)), config=own | changes, threat=threat, artifacts=artifacts)
        main(["show", str(folder), "--json"])
        found.append({each["name"]: each["value"] for each in json.loads(capsys.readouterr().out)["settings"]})
    assert found[0].items() <= found[1].items()
    assert {name: found[1][name] for name in found[1].keys() - found[0].keys()} == {
        "box": False, "corruptions": ["fog"],
    }  # fmt: skip
