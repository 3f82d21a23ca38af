"""A release checklist with known issues, for a pull request: Markdown, every line of it from results.json.

A box is ticked by what was measured, never by hand. Not here: the model card of a candidate (`kerf.workbench.report.model_card`).
"""

from kerf.core.cache import PACKAGES
from kerf.evaluate.gates import PASS, standing
from kerf.workbench.report.known_issues import issues, noisy, of_the_run, plain, processor, untested
from kerf.workbench.report.text_format import explained, moment, number, step_in_words


def release(results: dict) -> str:
    """The file's text."""
    released = [each for each in results["candidates"] if each["name"] in results["release"]]
    others = [
        each
        for each in results["candidates"]
        if each["name"] not in [*results["release"], "baseline"]
    ]
    model, manifest = results["model"], results["manifest"]
    lines = [
        f"# Release checklist: {plain(results['experiment'])} {results['verdict']}",
        "",
        f"{plain(model['id'].rstrip('/').rpartition('/')[2])} ({model['kind']}, {model['parameters']:,} parameters), run `{manifest.get('run')}` of "
        f"{moment(manifest.get('started', ''))}. Everything here was computed from the run's "
        "[results.json](results.json); [the report](index.html) shows the figures.",
        "",
    ]
    lines += ["## Checklist", ""]
    lines += [
        f"- [{'x' if done else ' '}] {text}"
        for candidate in released
        for done, text in checklist(candidate)
    ]
    lines += ["", "## Known issues", "", *_list(of_the_run(results))]
    for candidate in [*released, *others]:
        aside = "" if candidate in released else " (not for release)"
        lines += [
            f"### {plain(candidate['name'])}{aside}: {standing(candidate)}",
            "",
            *_list(issues(candidate)),
        ]
    lines += ["## Where it ran", "", *_list(_hardware(manifest))]
    lines += ["## What was not tested", "", *_list(untested(results, released))]
    return "\n".join(lines).rstrip() + "\n"


def _list(lines: list[str]) -> list[str]:
    return [*(f"- {line}" for line in lines), ""] if lines else ["Nothing was found.", ""]


def checklist(candidate: dict) -> list[tuple[bool, str]]:
    """(done, what) of a candidate meant for release."""
    name, whole = f"**{plain(candidate['name'])}**", candidate["status"] == "ok"
    steps = "; ".join(step_in_words(step) for step in candidate["steps"])
    boxes = [(whole, f"{name} was made ({plain(steps)}) and measured")]
    if not whole:
        return boxes
    for gate in candidate["gates"]:
        shown = explained(gate, candidate)
        bound = (
            ""
            if gate["bound"] is None
            else f": bound {number(gate['bound'], shown['about']['unit'])}"
        )
        boxes.append(
            (
                gate["verdict"] == PASS,
                f"{name}: {plain(shown['about']['label'])} {plain(shown['asked'])}{bound}, {gate['verdict']}",
            )
        )
    layers, claims = (
        candidate.get("layers") or [],
        [gate["verdict"] == PASS for gate in candidate["claims"]],
    )
    if not candidate["gates"]:
        boxes.append((False, f"{name} is judged by a gate"))
    if claims:
        boxes.append(
            (all(claims), f"{name}: {sum(claims)} of {len(claims)} claims that were checked hold")
        )
    return [
        *boxes,
        (not noisy(candidate), f"{name}: no gate was passed within measurement noise"),
        (
            not any(layer.get("reread") for layer in layers),
            f"{name}: no layer was on its grid before",
        ),
        (not any(layer.get("note") for layer in layers), f"{name}: no layer needed a note"),
    ]


def _hardware(manifest: dict) -> list[str]:
    cpu, packages = manifest.get("cpu") or {}, manifest.get("packages") or {}
    versions = [f"{name} {packages[name]}" for name in PACKAGES if name in packages]
    return [
        plain(processor(cpu)),
        f"{plain(' '.join(cpu.get('flags') or ['no flags known']))}",
        f"Kerf {manifest.get('kerf')}, Python {manifest.get('python')}, {plain(', '.join(versions))}",
    ]
