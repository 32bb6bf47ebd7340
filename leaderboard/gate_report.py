"""What the gate found: as a table for people, as JUnit XML, as annotations of a GitHub workflow."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree as ET

from tabulate import tabulate

from leaderboard.regression_gate import GateFinding, GateReport, Outcome
from leaderboard.run_tables import percent

KINDS: tuple[Outcome, ...] = ("failed", "warning", "ok")
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def gate_table(report: GateReport) -> str:
    """A line a finding, under its recipe; then what it comes to."""
    rows = [
        [f"  {each.outcome}", each.what, _old(each), _new(each), _p(each), each.message]
        for group in report.findings.values()
        for each in group
    ]
    headers = ["", "", "baseline", "new", "p", ""]
    text = tabulate(rows, headers, tablefmt="plain", disable_numparse=True, preserve_whitespace=True)
    header, *lines = (line.rstrip() for line in text.splitlines())
    shown, rest = [header], iter(lines)
    for recipe, group in report.findings.items():
        shown += [str(recipe), *(next(rest) for _ in group)]
    return "\n".join([*shown, "", _sum(report)])


def gate_junit(report: GateReport) -> str:
    """A test case a finding: what fails has a failure, a warning its message as output."""
    count = _count(report)
    numbers = {"tests": str(count.total()), "failures": str(count["failed"]), "errors": "0", "skipped": "0"}
    suites = ET.Element("testsuites", numbers)
    suite = ET.SubElement(suites, "testsuite", {"name": "bench check"} | numbers)
    for recipe, group in report.findings.items():
        for each in group:
            case = ET.SubElement(suite, "testcase", {"classname": _xml(str(recipe)), "name": _xml(each.what)})
            if each.outcome == "failed":
                ET.SubElement(case, "failure", {"message": _xml(_told(each))})
            elif each.outcome == "warning":
                ET.SubElement(case, "system-out").text = _xml(_told(each))
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def gate_annotations(report: GateReport) -> list[str]:
    """Workflow commands of GitHub, which shows few of each kind: an error a failure, one warning a recipe."""
    found = []
    for recipe, group in report.findings.items():
        told = {kind: [f"{each.what}: {_told(each)}" for each in group if each.outcome == kind] for kind in KINDS}
        found += [_command("error", str(recipe), line) for line in told["failed"]]
        if told["warning"]:
            found.append(_command("warning", str(recipe), "\n".join(told["warning"])))
    return found


def _sum(report: GateReport) -> str:
    count = _count(report)
    told = ", ".join(f"{count[kind]} {kind}" for kind in KINDS if count[kind])
    tests = sum(each.p is not None for group in report.findings.values() for each in group)
    chance = f"; {tests} tests, any false alarm among them has a chance of at most {report.alpha:g} (Holm)"
    return f"gate: {told}{chance * bool(tests)}"


def _count(report: GateReport) -> Counter[str]:
    return Counter(each.outcome for group in report.findings.values() for each in group)


def _told(each: GateFinding) -> str:
    if each.new is None:
        return each.message
    p = "" if each.p is None else f" (p {_p(each)})"
    return f"{_old(each)} -> {_new(each)}{p}: {each.message}"


def _old(each: GateFinding) -> str:
    return (
        "" if each.old is None else percent(each.old) + ("" if each.spread is None else f" +- {percent(each.spread)}")
    )


def _new(each: GateFinding) -> str:
    return "" if each.new is None else percent(each.new)


def _p(each: GateFinding) -> str:
    return "" if each.p is None else f"{each.p:.2g}"


def _xml(text: str) -> str:
    """What XML can hold of a text; ElementTree escapes the rest."""
    return NO_XML.sub("?", text)


def _command(kind: str, title: str, message: str) -> str:
    return f"::{kind} title={_escaped(title).replace(':', '%3A').replace(',', '%2C')}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
