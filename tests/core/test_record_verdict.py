"""The verdict hears what the results and the verification of a run say against it."""

from dataclasses import dataclass

import pytest

from bench.core import record_files
from bench.core.errors import UserError
from bench.core.example_table import Robustness
from bench.core.record_verdict import by_chance, with_code, with_findings, with_result_alarms
from bench.core.records import AttackResult, Bracket, BracketStage, Sanity
from bench.core.verification import VERIFICATION, verified, write_verification
from tests.core.test_records import make_record

QUIET = Sanity("no-warnings", [])
WARNING = "Square Attack has decreased the robust accuracy of 0.28%."


@dataclass(frozen=True)
class Found:
    name: str
    outcome: str
    evidence: str = "2 of 64"


def attack(*warnings):
    return AttackResult(0.5, (0.4, 0.6), forwards=8, backwards=4, seconds=0.5, warnings=list(warnings))


def bracket(broken, *, known=90, n=360, open_examples=0, backwards=9):
    """A bracket after 10 clean errors, and after pgd-50 broke `known` examples."""
    stages = {
        "clean": BracketStage(n, 0, 10, 0, 0, 0.0),
        "pgd-50": BracketStage(n - 10, 0, known, 0, 0, 0.0),
        "malt": BracketStage(n - 10 - known, 0, broken, 9, backwards, 1.0),
    }
    return Bracket(0.0, (0.0, 0.1), 0.5, (0.4, 0.6), open_examples, 1.0, stages, {}, budget=10)


def test_the_warning_of_an_attack_is_a_reason():
    found = with_result_alarms(QUIET, {"pgd-50": attack(), "autoattack": attack(WARNING)})
    assert found.verdict == "suspect"
    assert found.reasons == [f"attack-warnings: autoattack: {WARNING}"]
    assert with_result_alarms(found, {"autoattack": attack(WARNING)}) == found  # once
    assert with_result_alarms(QUIET, {"autoattack": attack()}) == QUIET
    assert with_result_alarms(Sanity("unreliable", ["x"]), {"autoattack": attack(WARNING)}).verdict == "unreliable"


@pytest.mark.parametrize(("broken", "verdict"), [(0, "no-warnings"), (3, "no-warnings"), (25, "suspect")])
def test_a_bracket_that_broke_more_than_the_attacks_is_a_reason(broken, verdict):
    found = with_result_alarms(QUIET, {"pgd-50": attack(), "bracket": bracket(broken)})
    assert found.verdict == verdict
    if verdict == "suspect":
        assert found.reasons == ["bracket-better: the bracket breaks 25 of 350 examples that pgd-50 left"]


def test_a_bracket_promises_nothing_of_one_step():
    stages = bracket(200).stages
    one_step = {name.replace("pgd-50", "fgsm"): stage for name, stage in stages.items()}
    found = Bracket(0.0, (0.0, 0.1), 0.5, (0.4, 0.6), 0, 1.0, one_step, {}, budget=10)
    assert with_result_alarms(QUIET, {"fgsm": attack(), "bracket": found}) == QUIET


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ({}, "not-attacked"),
        ({"pgd-50:eps=0.1": attack()}, "not-attacked"),
        ({"bracket": bracket(0, known=0, open_examples=350, backwards=0)}, "not-attacked"),
        ({"bracket": bracket(0, known=0, open_examples=350)}, "no-warnings"),
        ({"bracket": bracket(0, known=0, backwards=0)}, "no-warnings"),
        ({"pgd-50": attack()}, "no-warnings"),
    ],
)
def test_not_attacked_where_nothing_ran(results, verdict):
    assert with_result_alarms(QUIET, results).verdict == verdict


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [(["passed"], "no-warnings"), (["weaker"], "suspect"), (["weaker", "failed"], "unreliable")],
)
def test_findings_of_a_verification_are_reasons(outcomes, verdict):
    record = make_record(sanity=QUIET)
    found = with_findings(record, [Found(f"check {outcome}", outcome) for outcome in outcomes]).sanity
    assert found.verdict == verdict
    assert found.reasons == [f"verify check {outcome}: 2 of 64" for outcome in outcomes if outcome != "passed"]


def test_a_verification_is_stored_beside_the_record_and_holds_for_this_record_only(tmp_path):
    record = make_record(sanity=QUIET)
    record_files.write_record(tmp_path, record)
    assert verified(record, tmp_path) == record
    write_verification(tmp_path, [Found("predictions", "failed")], attack="pgd-50", sample=64, seed=1)
    assert verified(record, tmp_path).sanity.verdict == "unreliable"
    record_files.write_record(tmp_path, make_record(sanity=QUIET, seed=4))
    assert verified(record, tmp_path) == record
    (tmp_path / VERIFICATION).write_text("{}")
    with pytest.raises(UserError, match="delete it and verify again"):
        verified(record, tmp_path)


def test_a_record_that_is_read_has_heard_its_results(tmp_path):
    record = make_record(sanity=QUIET, attacks={"autoattack": attack(WARNING)}, worst=Robustness(0.5, (0.4, 0.6)))
    record_files.write_record(tmp_path, record)
    assert record_files.read_record(tmp_path).sanity.verdict == "suspect"


def test_by_chance_grows_with_the_rate():
    assert by_chance(350, 0.01) < by_chance(350, 0.05) < 350


@pytest.mark.parametrize(("verdict", "heard_verdict"), [
    ("no-warnings", "submitted-code"), ("suspect", "suspect"), ("unreliable", "unreliable"),
])  # fmt: skip
def test_code_of_the_submitter_has_never_the_best_verdict(verdict, heard_verdict):
    record = make_record(sanity=Sanity(verdict, []), config={"code": ["ab" * 32]})
    found = with_code(record).sanity
    assert found.verdict == heard_verdict
    assert "files of the submitter run" in found.reasons[-1]
    for config in ({}, {"code": []}, {"code": 5}):
        assert with_code(make_record(sanity=QUIET, config=config)).sanity == QUIET
