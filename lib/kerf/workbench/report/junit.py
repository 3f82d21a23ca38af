"""The gates of a run as JUnit XML, for CI: a testsuite a candidate, a testcase a gate.

The file is red exactly when `kerf run --gate` would not exit 0. A gate of a release candidate that FAILs is a
failure, and so is one that is INCONCLUSIVE, of type INCONCLUSIVE: `--gate` asks for PASS, and a CI that shows what
was not decided as skipped would let it through. So is a release candidate that no gate judges. Gates of the other
candidates are never red: what they do not pass is skipped, with the verdict in words. A candidate that was NOT
MEASURED, since a stage of its own or of the baseline broke, is an error and no failure, for release or not, as it
makes the exit code 3. Claims change no verdict and are not here.

Jenkins takes `classname` as package and class, split at the last dot; GitLab tells tests apart by `classname` and
`name`, so a name carries its threshold. Candidates may have dots in their names: they become dashes in `classname`.
"""

import re
from xml.etree import ElementTree

from kerf.evaluate import gates
from kerf.workbench.report.text_format import broke, explained, reason

NOT_XML = re.compile(
    "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # XML 1.0 has no way to write these


def junit(results: dict) -> str:
    """The file's text, from results.json."""
    manifest = results.get("manifest") or {}
    root = ElementTree.Element("testsuites", name=_clean(results["experiment"]))
    for candidate in results["candidates"]:
        if candidate["name"] != "baseline" or candidate["status"] != "ok":
            _suite(root, results, candidate)
    _count(root)
    for suite in root:
        suite.set(
            "timestamp", str(manifest.get("started", ""))[:19]
        )  # the schema has no time zone; it is UTC
        _count(suite)
    ElementTree.indent(root)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        + ElementTree.tostring(root, encoding="unicode")
        + "\n"
    )


def _suite(root, results: dict, candidate: dict) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=_clean(candidate["name"]))
    place = f"{results['experiment']}.{candidate['name'].replace('.', '-')}"
    released = candidate["name"] in results["release"]
    if candidate["status"] != "ok":
        _case(suite, place, "made and measured", "error", gates.NOT_MEASURED, broke(candidate))
        return
    for gate in candidate["gates"]:
        name = f"{gate['metric']} {gate['op']} {gate['threshold']}"
        outcome = _outcome(gate["verdict"], released)
        _case(
            suite, place, name, outcome, gate["verdict"], reason(explained(gate, candidate)), gate
        )
    if not candidate["gates"]:
        message = f"no gate of {', '.join(results['criteria'][:1])} applies to {candidate['name']}, so nothing decides"
        _case(
            suite,
            place,
            "judged",
            _outcome(gates.INCONCLUSIVE, released),
            gates.INCONCLUSIVE,
            message,
        )


def _outcome(verdict: str, released: bool) -> str:
    """The element that a verdict becomes; empty for none."""
    return "" if verdict == gates.PASS else "failure" if released else "skipped"


def _case(
    suite, place: str, name: str, outcome: str, verdict: str, message: str, gate: dict | None = None
) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=_clean(place), name=_clean(name), time="0"
    )
    if not outcome:
        return
    shown = f"{'not for release; ' if outcome == 'skipped' else ''}{verdict}: {message}"
    said = ElementTree.SubElement(case, outcome, message=_clean(shown), type=verdict)
    said.text = _clean(
        "\n".join([shown, *_why(gate or {})])
    )  # Jenkins shows the message, GitLab the text


def _why(gate: dict) -> list[str]:
    said = {
        "bound": gate.get("bound"),
        "threshold": gate.get("threshold"),
        "reason": gate.get("reason"),
        "source": gate.get("source"),
    }
    return [f"{key}: {value}" for key, value in said.items() if value not in (None, "")]


def _count(element) -> None:
    """Totals of a testsuite, or of all of them, as readers of the format expect them."""
    cases = list(element.iter("testcase"))
    element.set("tests", str(len(cases)))
    kinds = (("failure", "failures"), ("error", "errors"), ("skipped", "skipped"))
    for outcome, key in (
        kinds if element.tag == "testsuite" else kinds[:2]
    ):  # the schema has no other
        element.set(key, str(sum(case.find(outcome) is not None for case in cases)))
    element.set("time", "0")


def _clean(text: str) -> str:
    return NOT_XML.sub("�", str(text))
