from bench.verify.report import Finding
from bench.verify.summary import ESSENTIAL, summarize

PASSED = [Finding(name, "passed", "") for name in ("configuration", *ESSENTIAL)]


def test_everything_checked_is_verified_even_if_attacks_are_weak_or_leakage_is_not_checkable():
    summary = summarize([*PASSED, Finding("attacked again", "weaker", ""), Finding("leakage", "not checkable", "")])
    assert summary.status == "verified"
    assert summary.as_line() == "verified: 6 passed, 1 weaker, 1 not checkable"


def test_the_last_line_says_what_follows_for_the_accuracy_and_what_to_do():
    report = [*PASSED, Finding("attacked again", "weaker", ""), *[Finding("x", "warning", "")] * 2]
    line = summarize(report, lowered=(0.081, 0.0083)).as_line()
    assert line.endswith("1 weaker, 2 warnings; accuracy under attack is at most 0.8 %, the record says 8.1 %")
    report.append(Finding(ESSENTIAL[0], "not checkable", ""))
    assert (
        summarize(report, advice="give --plugin mine.py").as_line().endswith("1 not checkable; give --plugin mine.py")
    )


def test_a_failure_counts_before_all_else():
    unread = [Finding(name, "not checkable", "") for name in ESSENTIAL]
    assert summarize([*unread, Finding("labels", "failed", "")]).status == "failed"


def test_without_predictions_or_witnesses_nothing_is_verified():
    for name in ESSENTIAL:
        report = [each for each in PASSED if each.name != name] + [Finding(name, "not checkable", "")]
        assert summarize(report).status == "incomplete"
        assert summarize(report).as_line() == f"incomplete: 5 passed, 1 not checkable; not checked: {name}"
