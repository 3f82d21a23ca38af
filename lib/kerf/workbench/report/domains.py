"""Where the text came from that a run was calibrated and measured on, in words, and the slices that lost most."""

from collections import defaultdict
from typing import Any

from kerf.core.errors import listed
from kerf.workbench.report.text_format import describe, settings_of


def families(results: dict) -> dict[str, list[str]]:
    """Domains that calibration did not see (`new`) and others (`seen`), each as `docs (technical)`."""
    known: dict[str, dict[str, Any]] = {}
    for candidate in results.get("candidates") or []:
        for row in candidate.get("metrics") or []:
            if row.get("family"):
                known[row["domain"]] = row
    words = defaultdict(list)
    for domain, row in known.items():
        words["seen" if row["seen"] else "new"].append(f"{domain} ({row['family']})")
    return words


def sources(results: dict) -> str:
    """A sentence on the sources; empty for runs that did not tell them apart."""
    words, texts = families(results), settings_of(results).get("calibration.texts")
    if not words:
        return ""
    names = [texts] if isinstance(texts, str) else texts or []
    parts = []
    if words["new"]:
        parts.append(f"on families that calibration did not see, {listed(words['new'], 'and')}")
    if words["seen"]:
        parts.append(f"on those that it saw, {listed(words['seen'], 'and')}")
    read = listed([name.rpartition("/")[2] for name in names], "and")
    return f"Calibration read {read}. Measured {'; '.join(parts)}."


def same_domain(results: dict) -> bool:
    """Whether everything was measured on families of text that calibration saw."""
    words = families(results)
    return bool(words["seen"]) and not words["new"]


def slices(candidates: list[dict]) -> list[dict]:
    """Rows of the table of worst slices: candidate, metric (`about`), and the slice itself."""
    return [
        {"candidate": candidate["name"], "about": describe(own["metric"]), **own}
        for candidate in candidates
        for own in candidate.get("slices") or []
    ]
