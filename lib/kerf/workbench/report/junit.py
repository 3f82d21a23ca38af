"""The gates of a run as JUnit XML, for CI: a testsuite per candidate, a testcase per gate.

The file is red exactly when `kerf run --gate` does not exit with 0: for a release candidate a gate that is FAIL or
INCONCLUSIVE, or having no gate, is a failure; gates of other candidates are skipped if they did not pass; a candidate
that was NOT MEASURED is an error. Claims and gates of other uses change no verdict and are left out.
"""

import re
from collections.abc import Iterator
from io import BytesIO

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from kerf.evaluate.gates import INCONCLUSIVE, NOT_MEASURED, PASS
from kerf.workbench.report.answers import deciding, explained, failure, reason

Unmet = type[Error | Failure | Skipped]
# XML 1.0 cannot represent these characters, not even escaped.
ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(results: dict) -> str:
    """The XML document of results.json."""
    document = JUnitXml(_legal(results["experiment"]))
    started = str((results.get("manifest") or {}).get("started", ""))[:19]  # in UTC, unmarked
    for candidate in results["candidates"]:
        if candidate["name"] != "baseline" or candidate["status"] != "ok":
            suite = TestSuite(_legal(candidate["name"]))
            suite.timestamp = started
            suite.add_testcases(list(_cases(results, candidate)))
            document.add_testsuite(suite)
    document.update_statistics()
    content = BytesIO()
    document.write(content, pretty=True)
    return content.getvalue().decode()


def _cases(results: dict, candidate: dict) -> Iterator[TestCase]:
    # Jenkins splits this name at the last dot into package and class; GitLab tells tests apart by both names.
    place = f"{results['experiment']}.{candidate['name'].replace('.', '-')}"
    unmet = Failure if candidate["name"] in results["release"] else Skipped
    if candidate["status"] != "ok":
        yield _case(place, "made and measured", Error, NOT_MEASURED, failure(candidate))
        return
    gates = deciding(candidate)
    for gate in gates:
        name = f"{gate['metric']} {gate['op']} {gate['threshold']}"
        name = f"{gate['use']}: {name}" if gate.get("use") else name
        keys = ("bound", "threshold", "reason", "source")
        details = [f"{key}: {gate[key]}" for key in keys if gate.get(key) not in (None, "")]
        message = reason(explained(gate, candidate))
        yield _case(place, name, unmet, gate["verdict"], message, *details)
    if candidate["verdict"] != PASS and all(gate["verdict"] == PASS for gate in gates):
        criteria = ", ".join(results["criteria"][:1])
        message = f"no gate of {criteria} applies to {candidate['name']}, so nothing decides"
        yield _case(place, "judged", unmet, INCONCLUSIVE, message)


def _case(place: str, name: str, unmet: Unmet, verdict: str, *lines: str) -> TestCase:
    """A testcase with a result of class `unmet` unless its verdict is PASS; lines: the message, then details."""
    case = TestCase(_legal(name), _legal(place), 0)
    if verdict != PASS:
        first = f"{'not for release; ' if unmet is Skipped else ''}{verdict}: {lines[0]}"
        result = unmet(_legal(first), verdict)  # Jenkins shows the message, GitLab the text
        result.text = _legal("\n".join([first, *lines[1:]]))
        case.result = result
    return case


def _legal(text: str) -> str:
    return ILLEGAL.sub("�", str(text))
