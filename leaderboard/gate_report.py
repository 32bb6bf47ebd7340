"""The report of the gate as a table, as JUnit XML and as annotations of a GitHub workflow."""

import re
from collections import Counter
from xml.etree import ElementTree as ET

from leaderboard.regression_gate import GateFinding, GateReport, Outcome
from leaderboard.render import percent, render

KINDS: tuple[Outcome, ...] = ("failed", "warning", "ok")
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def gate_table(report: GateReport) -> str:
    """A line for each finding under its recipe, then the number of findings by outcome."""
    rows = [
        [each.outcome, each.what, _old(each), _new(each), _p(each), each.message]
        for group in report.findings.values()
        for each in group
    ]
    table = render(["", "", "baseline", "new", "p", ""], rows, "plain")
    header, *rest = (f"  {line}".rstrip() for line in table.splitlines())
    lines, findings = [header], iter(rest)
    for recipe, group in report.findings.items():
        lines += [str(recipe), *(next(findings) for _ in group)]
    return "\n".join([*lines, "", _summary(report)])


def gate_junit(report: GateReport) -> str:
    """A test case for each finding, with a failure if it failed, and the message as output if it is a warning."""
    count = _count(report)
    numbers = {"tests": str(count.total()), "failures": str(count["failed"]), "errors": "0", "skipped": "0"}
    suites = ET.Element("testsuites", numbers)
    suite = ET.SubElement(suites, "testsuite", {"name": "bench check"} | numbers)
    for recipe, group in report.findings.items():
        for each in group:
            case = ET.SubElement(suite, "testcase", {"classname": _xml(str(recipe)), "name": _xml(each.what)})
            if each.outcome == "failed":
                ET.SubElement(case, "failure", {"message": _xml(_detail(each))})
            elif each.outcome == "warning":
                ET.SubElement(case, "system-out").text = _xml(_detail(each))
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def gate_annotations(report: GateReport) -> list[str]:
    """GitHub workflow commands: an error for each failure, one warning for each recipe (GitHub shows few of each)."""
    commands = []
    for recipe, group in report.findings.items():
        lines = {kind: [f"{each.what}: {_detail(each)}" for each in group if each.outcome == kind] for kind in KINDS}
        commands += [_command("error", str(recipe), line) for line in lines["failed"]]
        if lines["warning"]:
            commands.append(_command("warning", str(recipe), "\n".join(lines["warning"])))
    return commands


def _summary(report: GateReport) -> str:
    count = _count(report)
    outcomes = ", ".join(f"{count[kind]} {kind}" for kind in KINDS if count[kind])
    tests = sum(each.p is not None for group in report.findings.values() for each in group)
    error = f"; {tests} tests, with a family-wise error rate of at most {report.alpha:g} (Holm)" if tests else ""
    return f"gate: {outcomes}{error}"


def _count(report: GateReport) -> Counter[str]:
    return Counter(each.outcome for group in report.findings.values() for each in group)


def _detail(each: GateFinding) -> str:
    if each.new is None:
        return each.message
    p = "" if each.p is None else f" (p {_p(each)})"
    return f"{_old(each)} -> {_new(each)}{p}: {each.message}"


def _old(each: GateFinding) -> str:
    spread = "" if each.spread is None else f" +- {percent(each.spread)}"
    return "" if each.old is None else f"{percent(each.old)}{spread}"


def _new(each: GateFinding) -> str:
    return "" if each.new is None else percent(each.new)


def _p(each: GateFinding) -> str:
    return "" if each.p is None else f"{each.p:.2g}"


def _xml(text: str) -> str:
    """Text without the characters that XML does not allow; ElementTree escapes the others."""
    return NOT_XML.sub("?", text)


def _command(kind: str, title: str, message: str) -> str:
    return f"::{kind} title={_escaped(title).replace(':', '%3A').replace(',', '%2C')}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
