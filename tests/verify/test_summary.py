from bench.verify.report import Finding
from bench.verify.summary import ESSENTIAL, summarize

PASSED = [Finding(name, "passed", "") for name in ("configuration", *ESSENTIAL)]


def test_everything_checked_is_verified_even_if_attacks_are_weak_or_leakage_is_not_checkable():
    summary = summarize([*PASSED, Finding("attacked again", "weaker", ""), Finding("leakage", "not checkable", "")])
    assert summary.status == "verified"
    assert summary.as_line() == "verified: 6 passed, 1 weaker, 1 not checkable"


def test_a_failure_counts_before_all_else():
    unread = [Finding(name, "not checkable", "") for name in ESSENTIAL]
    assert summarize([*unread, Finding("labels", "failed", "")]).status == "failed"


def test_without_predictions_or_witnesses_nothing_is_verified():
    for name in ESSENTIAL:
        report = [each for each in PASSED if each.name != name] + [Finding(name, "not checkable", "")]
        assert summarize(report).status == "incomplete"
        assert summarize(report).as_line() == f"incomplete: 5 passed, 1 not checkable; not checked: {name}"
