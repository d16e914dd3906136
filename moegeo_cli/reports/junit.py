"""JUnit XML: one test case per check, for CI systems that show test results.

A check with a failing finding is a failure. A check at watch passes, with the finding in
system-out. An undecided check and an inconclusive verdict are skipped, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from moegeo_cli.records import Check, Finding, RunRecord, Verdict
from moegeo_cli.records.check import CheckRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.reports import judgement, outline
from moegeo_cli.reports.escaping import clean


def render(record: RunRecord) -> str:
    """The run's checks as a test suite."""
    name = clean(record.run.get("name", "run"))
    suite = ET.Element("testsuite", name=f"moegeo {name}")
    verdict = record.verdict
    if verdict is None:
        _skip(_case(suite, "verdict", "verdict"), "measured, not judged")
        return _text(suite)
    active = judgement.findings(verdict)
    for check in _checks(verdict, active):
        _add_check(suite, check, [f for f in active if f.id == check.id])
    for axis, word in (("routing", verdict.routing), ("performance", verdict.performance)):
        decided = any(f.severity == "failing" and f.axis == axis for f in active)
        _add_axis(suite, axis, word, verdict, decided)
    gaps = outline.coverage_gaps(record.newest)
    case = _case(suite, "coverage", "verdict")
    if gaps:
        _skip(case, "; ".join(gaps))
    return _text(suite)


def render_check(record: CheckRecord) -> str:
    """The file checks as a test suite."""
    suite = ET.Element("testsuite", name=f"moegeo check {clean(record.run.get('name', 'run'))}")
    verdict = record.verdict
    if verdict is None:
        _skip(_case(suite, "verdict", "verdict"), "read, not judged")
        return _text(suite)
    active = judgement.findings(verdict)
    for check in _checks(verdict, active):
        _add_check(suite, check, [f for f in active if f.id == check.id])
    gaps = outline.coverage_gaps(record.newest)
    case = _case(suite, "coverage", "verdict")
    if gaps:
        _skip(case, "; ".join(gaps))
    return _text(suite)


def render_comparison(record: ComparisonRecord) -> str:
    """Test cases for both runs' verdicts, and one that fails if b is shown to be worse."""
    suite = ET.Element("testsuite", name="moegeo compare")
    for run in (record.run_a, record.run_b):
        case = _case(suite, f"verdict of {clean(run.name)}", "compare")
        if run.status == "failing":
            ET.SubElement(case, "failure", message=f"{clean(run.name)} is failing")
        elif run.status in {None, "inconclusive"}:
            _skip(case, f"verdict: {clean(run.status or 'not judged')}")
    case = _case(suite, "b is not worse than a", "compare")
    if not record.pairs:
        _skip(case, clean(record.reason))
    elif record.healthier == "a":
        ET.SubElement(case, "failure", message=clean(record.reason))
    else:
        ET.SubElement(case, "system-out").text = clean(record.reason)
    return _text(suite)


def _checks(verdict: Verdict, active: Sequence[Finding]) -> list[Check]:
    """The checks of a verdict. Findings of older records, which list no checks, are added."""
    known = {c.id for c in verdict.checks}
    found = {f.id: Check(f.id, f.name, f.axis, "found") for f in active if f.id not in known}
    return sorted([*verdict.checks, *found.values()], key=lambda c: c.id)


def _add_check(suite: ET.Element, check: Check, found: Sequence[Finding]) -> None:
    case = _case(suite, f"{check.id} {check.name}", check.axis)
    if check.outcome == "skipped":
        _skip(case, check.reason or "could not be decided")
    failing = [f for f in found if f.severity == "failing"]
    if failing:
        message = "; ".join(clean(f.message).rstrip(".") for f in failing)
        failure = ET.SubElement(case, "failure", message=message, type="failing")
        failure.text = "\n".join(line for f in failing for line in _lines(f))
    milder = [f for f in found if f.severity != "failing"]
    if milder:
        ET.SubElement(case, "system-out").text = "\n".join(x for f in milder for x in _lines(f))


def _add_axis(suite: ET.Element, axis: str, word: str, verdict: Verdict, decided: bool) -> None:
    """Add a test case for an axis. It fails only if no failing finding of the axis does."""
    case = _case(suite, f"{axis} axis", "verdict")
    reasons = "; ".join(clean(r).rstrip(".") for r in verdict.reasons)
    if word == "failing" and not decided:
        ET.SubElement(case, "failure", message=f"{axis} is failing", type="failing").text = reasons
    elif word not in {"healthy", "watch", "failing"}:
        _skip(case, f"{axis}: {clean(word)}")
    else:
        ET.SubElement(case, "system-out").text = f"{axis}: {clean(word)}. {reasons}".strip()


def _lines(finding: Finding) -> list[str]:
    where = f" (layers {judgement.layer_list(finding.layers)})" if finding.layers else ""
    lines = [f"{finding.severity}: {clean(finding.message)}{where}"]
    lines += judgement.evidence_lines(finding.evidence)
    limit = judgement.threshold_words(finding)
    return [*lines, limit] if limit else lines


def _case(suite: ET.Element, name: str, group: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=f"moegeo.{clean(group)}", name=clean(name))


def _skip(case: ET.Element, reason: str) -> None:
    ET.SubElement(case, "skipped", message=clean(reason))


def _text(suite: ET.Element) -> str:
    """The document, with the numbers of tests, failures and skipped tests."""
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", "0")
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
