"""The command line: `kerf run | check | list | ab | report | export | clean | lab`.

Exit codes: 0 success; 1 with --gate alone: the verdict is not PASS; 2 bad input; 3 a stage or Kerf itself failed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from kerf.core import device
from kerf.core.errors import InputError, escaped, nearest, refuse
from kerf.core.paths import root, shipped
from kerf.core.user_files import given_path
from kerf.workbench.crash_report import explain

if TYPE_CHECKING:
    from kerf.workbench.run.experiment import Experiment
    from kerf.workbench.run.runner import Run

Argument = tuple[str, dict[str, Any]]
Command = tuple[Callable[[argparse.Namespace], int | None], list[Argument]]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. A refusal or any other error is one line on standard error."""
    parsed = _parser().parse_args(arguments)
    _interrupt_on_signals()
    try:
        code = parsed.command(parsed) or 0
        sys.stdout.flush()  # a closed pipe fails here, where it can still be reported
        return code
    except InputError as refusal:
        print(f"kerf: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        message = "stopped; what was finished is kept, and the next run goes on from there"
        print(f"kerf: {message}", file=sys.stderr)
        return 128 + (interrupt.args or [signal.SIGINT])[0]
    except BaseException as error:  # also a panic in Rust and sys.exit(), which would exit with 1
        return explain(error, getattr(parsed, "out", None))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))


def _interrupt_on_signals() -> None:
    """Treat SIGTERM and SIGHUP like Ctrl-C, unless they are ignored, as under nohup."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, interrupt)


def _flag(name: str, text: str) -> Argument:
    return name, {"action": "store_true", "help": text}


def _commands() -> dict[str, Command]:
    """Function and arguments of every command; the docstring of the function is the command's help."""
    out = "--out", {"help": "folder of reports/ and data/runs/ (default: the clone)"}
    as_json = _flag("--json", "print JSON")
    experiment: list[Argument] = [
        ("experiment", {"help": "a name of `kerf list experiments` or a file"}),
        ("--model", {"help": "use this model: a known name, a hub id or a directory"}),
        ("-p", {"dest": "overrides", "action": "append", "default": [], "metavar": "PATH=VALUE"}),
        ("--device", {"help": "torch device of the models (default: cpu)"}),
        out,
    ]
    gate = _flag("--gate", "exit 1 unless the verdict is PASS")
    fresh = _flag("--fresh", "reuse no stage of an earlier run")
    what = "what", {"choices": ["models", "methods", "experiments", "runs"], "metavar": None}
    side = {"help": "EXPERIMENT/CANDIDATE of the newest run, or EXPERIMENT/RUN/CANDIDATE"}
    page = "experiment", {"help": "a folder of reports/"}
    pdf = _flag("--pdf", "print it beside the page, with an installed Chromium")
    candidate = "candidate", {"help": "its directory, data/runs/EXPERIMENT/NAME"}
    folder = "folder", {"help": "the checkpoint, a folder that does not exist yet"}
    formats = "gptq (zero points less one, as AutoGPTQ) or gptq_v2"
    form = "--format", {"default": "gptq", "help": formats}
    return {
        "run": (run, [*experiment, gate, fresh]),
        "check": (check, experiment),
        "list": (list_names, [what, as_json, out]),
        "ab": (compare, [("a", side), ("b", side), as_json, out]),
        "report": (report, [page, pdf, out]),
        "export": (export, [candidate, folder, form]),
        "clean": (clean, [_flag("--dry-run", "only list what would be removed")]),
        "lab": (lab, []),
    }


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kerf", description="Compress a model, then measure what the cut cost.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, arguments) in _commands().items():
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(command=function)
        for argument, options in arguments:
            if not argument.startswith("-"):
                options = {"metavar": argument.upper(), **options}
            command.add_argument(argument, **options)
    return parser


def _prepare(parsed: argparse.Namespace) -> tuple["Experiment", Path, dict]:
    """The checked experiment, the output folder, and the model's description."""
    from kerf.workbench.run import experiment, plan

    os.environ["KERF_DEVICE"] = device.check(parsed.device or device.current())
    out = _out(parsed)
    checked = experiment.read(parsed.experiment, parsed.overrides, parsed.model)
    return checked, out, plan.check(checked, out)


def _out(parsed: argparse.Namespace) -> Path:
    if parsed.out is None:
        return root().resolve()
    return _path("--out", parsed.out, "a directory that can be written").resolve()


def _path(parameter: str, text: str, accepted: str) -> Path:
    path = given_path(text)
    if path is None:
        raise refuse(parameter, text, accepted)
    return path


def check(parsed: argparse.Namespace) -> None:
    """Validate everything that needs no heavy work."""
    from kerf.evaluate.stats import LEAST_DOCUMENTS

    experiment, out, description = _prepare(parsed)
    model = f"{experiment.model} ({description['parameters']:,} parameters)"
    scope = f"{len(experiment.candidates)} candidates, release {', '.join(experiment.release)}"
    _print(f"{experiment.name}: {model}, {scope}: ready to run into {out}")
    if (documents := description["documents"]) < LEAST_DOCUMENTS:
        print(
            f"Its evaluation text comes from {documents} independent documents; with fewer than "
            f"{LEAST_DOCUMENTS} there are no intervals, and gates stay INCONCLUSIVE."
        )


def run(parsed: argparse.Namespace) -> int:
    """Run an experiment and write its report."""
    from kerf.workbench.report import exports, page
    from kerf.workbench.run import results
    from kerf.workbench.run.runner import Run

    experiment, out, description = _prepare(parsed)
    this = Run(experiment, out, parsed.fresh, _slug(parsed.model) if parsed.model else "")
    candidates = this.execute()
    this.report.mkdir(parents=True, exist_ok=True)
    content, pictures = results.assemble(this, description, candidates)
    results.write(this, content, candidates)
    exports.write(content, this.report)
    report_page = page.render_report(content, this.report, pictures)
    index = page.render_index(out / "reports")
    failed = _print_outcome(this, content)
    _print(f"report: {report_page}\nall runs: {index}")
    if failed:
        return 3
    return 1 if parsed.gate and content["verdict"] != "PASS" else 0


def _print_outcome(run: "Run", content: dict) -> bool:
    """Print the verdict and every failure; returns whether a stage failed."""
    reused, seconds = sum(stage["reused"] for stage in run.stages), content["manifest"]["seconds"]
    verdict = f"{content['verdict']} ({', '.join(content['release'])})"
    _print(f"{run.name}: {verdict} in {seconds:.0f} s; {reused} of {run.total} stages reused")
    rows = content["candidates"]
    errors = {row["name"]: row["error"] for row in rows if row["status"] == "failed"}
    if error := (content["resources"] or {}).get("error"):
        errors["resources"] = error
    for name, error in errors.items():
        where = f"{error['notebook']}, cell {error['cell']}"
        _print(f"kerf: {name} failed in {where}: {error['message']}", sys.stderr)
    if skipped := [row["name"] for row in rows if row["status"] == "skipped"]:
        reason = "not measured, since the baseline was not"
        _print(f"kerf: {reason}: {', '.join(skipped)}", sys.stderr)
    return bool(errors)


def _slug(model: str) -> str:
    """A model's name, or the last two parts of its path, as part of a folder's name."""
    name = "-".join(Path(model).parts[-2:]).lower()
    return re.sub(r"[^a-z0-9._-]+", "-", name).strip("-.")[:60] or "model"


def list_names(parsed: argparse.Namespace) -> None:
    """List models, methods, experiments or runs, with the name first on each line."""
    functions = {"models": _models, "methods": _methods, "experiments": _experiments}
    rows = _runs(_out(parsed)) if parsed.what == "runs" else functions[parsed.what]()
    if parsed.json:
        print(json.dumps(rows, indent=1))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        _print(f"{row['name'].ljust(width)}  {row['about']}")


def _models() -> list[dict[str, str]]:
    from kerf.models.registry import MODELS, origin

    licences = {name: preset.source.licence for name, preset in MODELS.items()}
    return [{"name": name, "about": f"{origin(name)} ({licences[name]})"} for name in MODELS]


def _methods() -> list[dict[str, str]]:
    from kerf.config import METHODS, PRUNING_METHODS, Reconstruct

    rows = []
    for kind, methods in (("quantize", METHODS), ("prune", PRUNING_METHODS)):
        for name, method in methods.items():
            keys = ", ".join(method.parameters.model_fields)
            rows.append({"name": name, "about": f"{kind}: {method.help}", "keys": keys})
    learn = "a step after quantize or prune: learn block by block what they left"
    keys = ", ".join(Reconstruct.model_fields)
    return [*rows, {"name": "reconstruct", "about": learn, "keys": keys}]


def _experiments() -> list[dict[str, str]]:
    from kerf.workbench.run import experiment

    texts = {name: experiment.find(name).read_text() for name in experiment.names()}
    titles = {name: text.partition("\n")[0].lstrip("# ") for name, text in texts.items()}
    return [{"name": name, "about": title} for name, title in titles.items()]


def _runs(out: Path) -> list[dict[str, str]]:
    from kerf.workbench.run import history
    from kerf.workbench.run.record import Damaged, Unreadable

    rows = []
    for folder in history.finished(history.history(out)):
        try:
            content = history.read(folder)
            count = len(content["candidates"]) - 1
            about = f"{content.get('verdict')}, {content['model']['id']}, {count} candidates"
        except Damaged as problem:
            about = f"damaged: {problem}"
        except Unreadable as problem:
            about = f"unreadable results.json (it {problem})"
        rows.append({"name": f"{folder.parent.name}/{folder.name}", "about": about})
    return rows


def compare(parsed: argparse.Namespace) -> None:
    """Compare two candidates of finished runs, paired by item."""
    from kerf.evaluate import ab
    from kerf.workbench.report.ab_text import text
    from kerf.workbench.run import history

    out = _out(parsed)
    sides = history.find("A", parsed.a, out), history.find("B", parsed.b, out)
    comparison = ab.compare(*sides)
    if parsed.json:
        print(json.dumps(comparison, indent=1, allow_nan=False))
    else:
        _print(text(comparison))


def report(parsed: argparse.Namespace) -> None:
    """Print the path of an experiment's newest report, or of the report as PDF."""
    from kerf.workbench.report.pdf import printed

    reports = _out(parsed) / "reports"
    pages = {page.parent.name: page for page in reports.glob("*/index.html")}
    if parsed.experiment not in pages:
        accepted = f"one with a report in {reports}; {nearest(parsed.experiment, pages)}"
        raise refuse("EXPERIMENT", parsed.experiment, accepted)
    page = pages[parsed.experiment]
    _print(printed(page, page.with_name("report.pdf")) if parsed.pdf else page)


def export(parsed: argparse.Namespace) -> None:
    """Write a language model's candidate as a GPTQ checkpoint."""
    from kerf.formats import gptq_checkpoint

    directory = "a candidate's directory, as data/runs/EXPERIMENT/NAME"
    candidate = _path("CANDIDATE", parsed.candidate, directory)
    folder = _path("FOLDER", parsed.folder, "a folder that does not exist yet")
    _print(gptq_checkpoint.export(candidate, folder, parsed.format))


def clean(parsed: argparse.Namespace) -> None:
    """Remove what the cache holds and no run can use any more."""
    from kerf.workbench.clean import clean as clean_cache

    _print("\n".join(clean_cache(parsed.dry_run)))


def lab(_: argparse.Namespace) -> None:
    """Replace this process by JupyterLab on the notebooks, on localhost, with a token."""
    os.environ["KERF_ROOT"] = str(root())
    notebooks = root() / "notebooks"
    if not notebooks.is_dir():  # Kerf is installed without a clone: open a copy
        shutil.copytree(shipped() / "notebooks", notebooks)
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={notebooks}", "--ip=127.0.0.1"]
    if os.geteuid() == 0:  # as in a container; the server listens on localhost and requires a token
        command.append("--allow-root")
    os.execv(sys.executable, command)


def _print(text: object, file: TextIO | None = None) -> None:
    """Print lines that may hold names and texts of others, with control characters as escapes."""
    print("\n".join(map(escaped, str(text).split("\n"))), file=file)
