"""Files of a run for other programs and people: gates.xml for CI, release.md for a pull request, and model cards.

A box of the release checklist is ticked by what was measured, never by hand.
"""

from collections.abc import Iterator
from pathlib import Path

from kerf.core.atomic import write_page
from kerf.core.cache import PACKAGES
from kerf.evaluate.gates import PASS, standing
from kerf.workbench.report.junit import junit
from kerf.workbench.report.known_issues import issues, noisy, of_the_run, processor, untested
from kerf.workbench.report.model_card import card
from kerf.workbench.report.rendering import render
from kerf.workbench.report.text_format import describe, number, plain, steps_in_words, threshold


def write(results: dict, folder: Path) -> None:
    """Write them into a report's folder, with a model card for each measured release candidate."""
    write_page(folder / "gates.xml", junit(results))
    write_page(folder / "release.md", release(results))
    for candidate in results["candidates"]:
        path = folder / candidate["name"] / "README.md"
        if candidate["name"] in results["release"] and candidate["status"] == "ok":
            write_page(path, card(results, candidate))
        else:
            path.unlink(missing_ok=True)  # of an earlier run


def release(results: dict) -> str:
    """The release checklist of a run, in Markdown."""
    candidates = [row for row in results["candidates"] if row["name"] != "baseline"]
    released = [row for row in results["candidates"] if row["name"] in results["release"]]
    others = [row for row in candidates if row not in released]
    manifest = results["manifest"]
    packages = manifest.get("packages") or {}
    return render(
        "release.md.j2",
        results=results,
        manifest=manifest,
        model_name=results["model"]["id"].rstrip("/").rpartition("/")[2],
        boxes=[box for candidate in released for box in checklist(candidate)],
        run_issues=list(of_the_run(results)),
        candidates=[
            (row["name"], row in released, standing(row), issues(row)) for row in released + others
        ],
        processor=processor(manifest.get("cpu") or {}),
        packages=[f"{name} {packages[name]}" for name in PACKAGES if name in packages],
        untested=list(untested(results, released)),
    )


def checklist(candidate: dict) -> Iterator[tuple[bool, str]]:
    """(ticked, Markdown) of every box of a release candidate."""
    name, measured = f"**{plain(candidate['name'])}**", candidate["status"] == "ok"
    yield measured, f"{name} was made ({plain(steps_in_words(candidate))}) and measured"
    if not measured:
        return
    for gate in candidate["gates"]:
        about, required = describe(gate["metric"]), plain(threshold(gate))
        bound = "" if gate["bound"] is None else f": bound {number(gate['bound'], about.unit)}"
        text = f"{name}: {plain(about.label)} {required}{bound}, {gate['verdict']}"
        yield gate["verdict"] == PASS, text
    if not candidate["gates"]:
        yield False, f"{name} is judged by a gate"
    claims = [claim["verdict"] == PASS for claim in candidate["claims"]]
    if claims:
        yield all(claims), f"{name}: {sum(claims)} of {len(claims)} checked claims hold"
    layers = candidate.get("layers") or []
    unchanged = any(layer.get("reread") for layer in layers)
    noted = any(layer.get("note") for layer in layers)
    yield not noisy(candidate), f"{name}: no gate was passed within measurement noise"
    yield not unchanged, f"{name}: no layer was already on its grid"
    yield not noted, f"{name}: no layer needed a note"
