"""The command line: `kerf run | check | list | ab | report | export | clean | lab`.

Exit codes: 0 success; 1 with --gate alone: the verdict is not PASS; 2 bad input; 3 a stage or Kerf itself failed.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from kerf.core import code, device
from kerf.core.cache import PACKAGES, meta, packages
from kerf.core.digests import sha256
from kerf.core.errors import InputError, escaped, nearest, printable, refuse
from kerf.core.paths import data_folder, root, shipped
from kerf.core.user_files import given_path

if TYPE_CHECKING:
    from kerf.workbench.run.experiment import Experiment

Argument = tuple[str, dict[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. A refusal or any other error is one line on standard error."""
    parsed = _parser().parse_args(arguments)

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # not ignored, as under nohup
                signal.signal(number, interrupt)
    try:
        status = parsed.command(parsed) or 0
        sys.stdout.flush()  # a closed pipe fails here, where it can still be reported
        return status
    except InputError as refusal:
        print(f"kerf: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as signalled:
        message = "stopped; what was finished is kept, and the next run goes on from there"
        print(f"kerf: {message}", file=sys.stderr)
        return 128 + (signalled.args or [signal.SIGINT])[0]
    except BaseException as error:  # also a panic in Rust and sys.exit(), which would exit with 1
        return _crash(error, getattr(parsed, "out", None))


def _crash(error: BaseException, out: str | None) -> int:
    """Print the cause on standard error, write the trace into a file, and return 3: exit code 1 is for gates."""
    if isinstance(error, BrokenPipeError):
        # At exit the interpreter would flush the buffer, fail again, and choose an exit code of its own.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        message = " ".join(str(error)[:1000].split())
    except Exception:
        message = "no message"
    cause = printable(f"{type(error).__name__}: {message}".rstrip(": "), 300)
    trace = "no file: there is no folder that can be written"
    for folder in [Path(out, "reports"), None] if out else [None]:  # None: that of temporary files
        with suppress(OSError, ValueError):
            handle, path = tempfile.mkstemp(prefix="kerf-trace-", suffix=".txt", dir=folder)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                traceback.print_exception(error, file=file)
            trace = printable(path)
            break
    with suppress(OSError):  # standard error may be the closed pipe
        print(f"kerf: {cause}; the full trace is in {trace}", file=sys.stderr, flush=True)
    return 3


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))


def _parser() -> argparse.ArgumentParser:
    """Function and arguments of every command; the docstring of the function is the command's help."""
    out = "--out", {"help": "folder of reports/ and data/runs/ (default: the clone)"}
    flag = {"action": "store_true"}
    as_json = "--json", {**flag, "help": "print JSON"}
    experiment: list[Argument] = [
        ("experiment", {"help": "a name of `kerf list experiments` or a file"}),
        ("--model", {"help": "use this model: a known name, a hub id or a directory"}),
        ("--family", {"help": "encoder, causal or reranker, where its files do not say so"}),
        (
            "--query-prompt",
            {"help": "text that an encoder reads before a query", "metavar": "TEXT"},
        ),
        ("--passage-prompt", {"help": "the same before a passage", "metavar": "TEXT"}),
        ("-p", {"dest": "overrides", "action": "append", "default": [], "metavar": "PATH=VALUE"}),
        ("--device", {"help": "torch device of the models (default: cpu)"}),
        out,
    ]
    gate = "--gate", {**flag, "help": "exit 1 unless the verdict is PASS"}
    fresh = "--fresh", {**flag, "help": "reuse no stage of an earlier run"}
    what = "what", {"choices": ["models", "methods", "experiments", "runs"], "metavar": None}
    side = {"help": "EXPERIMENT/CANDIDATE of the newest run, or EXPERIMENT/RUN/CANDIDATE"}
    page = "experiment", {"help": "a folder of reports/"}
    pdf = "--pdf", {**flag, "help": "print it beside the page, with an installed Chromium"}
    candidate = "candidate", {"help": "its directory, data/runs/EXPERIMENT/NAME"}
    folder = "folder", {"help": "the checkpoint, a folder that does not exist yet"}
    formats = "gptq (zero points less one, as AutoGPTQ) or gptq_v2"
    dry_run = "--dry-run", {**flag, "help": "only list what would be removed"}
    functions: dict[str, tuple[Callable, list[Argument]]] = {
        "run": (run, [*experiment, gate, fresh]),
        "check": (check, experiment),
        "list": (list_names, [what, as_json, out]),
        "ab": (compare, [("a", side), ("b", side), as_json, out]),
        "report": (report, [page, pdf, out]),
        "export": (export, [candidate, folder, ("--format", {"default": "gptq", "help": formats})]),
        "clean": (clean, [dry_run]),
        "lab": (lab, []),
    }
    parser = _Parser(prog="kerf", description="Compress a model, then measure what the cut cost.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, arguments) in functions.items():
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(command=function)
        for argument, options in arguments:
            if not argument.startswith("-"):
                options = {"metavar": argument.upper(), **options}
            command.add_argument(argument, **options)
    return parser


def _prepare(parsed: argparse.Namespace) -> tuple["Experiment", Path, dict]:
    """The checked experiment, the output folder, and the model's description."""
    from kerf.config import Conventions
    from kerf.workbench.run import experiment, plan

    os.environ["KERF_DEVICE"] = device.check(parsed.device or device.current())
    out = _out(parsed)
    said = {key: getattr(parsed, key) for key in Conventions.model_fields}
    flags = [
        f"conventions.{key}={json.dumps(value)}" for key, value in said.items() if value is not None
    ]
    checked = experiment.read(parsed.experiment, parsed.overrides + flags, parsed.model)
    return checked, out, plan.check(checked, out)


def _out(parsed: argparse.Namespace) -> Path:
    out = root() if parsed.out is None else parsed.out
    return _path("--out", out, "a directory that can be written").resolve()


def _path(parameter: str, text: str | Path, accepted: str) -> Path:
    if path := given_path(text):
        return path
    raise refuse(parameter, text, accepted)


def check(parsed: argparse.Namespace) -> None:
    """Validate everything that needs no heavy work."""
    from kerf.evaluate.stats import LEAST_DOCUMENTS
    from kerf.workbench.run import data_summary, estimate

    experiment, out, description = _prepare(parsed)
    model = f"{experiment.model} ({description['parameters']:,} parameters)"
    scope = f"{len(experiment.candidates)} candidates, release {', '.join(experiment.release)}"
    scope += f" for {', '.join(experiment.use)}" if experiment.use else ""
    _print(f"{experiment.name}: {model}, {scope}: ready to run into {out}")
    if (documents := description["documents"]) < LEAST_DOCUMENTS:
        effect = "there are no intervals, and gates stay INCONCLUSIVE."
        text = f"Its evaluation text comes from {documents} independent documents"
        print(f"{text}; with fewer than {LEAST_DOCUMENTS} {effect}")
    for line in data_summary.lines(experiment, description["kind"]):
        _print(line)
    try:
        cost, seen = estimate.estimate(experiment, description)
    except RuntimeError as error:  # the run itself would say more
        _print(f"no estimate: {error}")
        return
    for what, count, total, limit in seen["cut"]:
        print(f"{count:,} of {total:,} {what} texts are cut at {limit} tokens")
    sizes = f"{cost.memory / 1e9:.1f} GB in the largest process, {cost.disk / 1e9:.1f} GB on disk"
    about = "an estimate from a short measurement on this machine; less where stages are reused"
    print(f"a run takes about {max(1, round(cost.seconds / 60))} minutes, {sizes} ({about})")


def run(parsed: argparse.Namespace) -> int:
    """Run an experiment and write its report."""
    from kerf.workbench.report import exports, page
    from kerf.workbench.run import results
    from kerf.workbench.run.runner import Run

    experiment, out, description = _prepare(parsed)
    this = Run(experiment, out, parsed.fresh, parsed.model and experiment.model)
    candidates = this.execute()
    this.report.mkdir(parents=True, exist_ok=True)
    content, pictures = results.assemble(this, description, candidates)
    results.write(this, content, candidates)
    exports.write(content, this.report)
    report_page = page.render_report(content, this.report, pictures)
    index = page.render_index(out / "reports")
    failed = _print_outcome(content, this.total)
    _print(f"report: {report_page}\nall runs: {index}")
    return 3 if failed else int(parsed.gate and content["verdict"] != "PASS")


def _print_outcome(content: dict, stages: int) -> bool:
    """Print the verdict and every failure of a run of so many stages; returns whether a stage failed."""
    manifest, rows = content["manifest"], content["candidates"]
    reused = sum(stage["reused"] for stage in manifest["stages"])
    purpose = f" for {', '.join(content['use'])}" if content["use"] else ""
    verdict = f"{content['verdict']} ({', '.join(content['release'])}{purpose})"
    cost = f"{manifest['seconds']:.0f} s; {reused} of {stages} stages reused"
    _print(f"{content['experiment']}: {verdict} in {cost}")
    errors = {row["name"]: row["error"] for row in rows if row["status"] == "failed"}
    if error := (content["resources"] or {}).get("error"):
        errors["resources"] = error
    for name, error in errors.items():
        where = f"{error['notebook']}, cell {error['cell']}"
        _print(f"kerf: {name} failed in {where}: {error['message']}", sys.stderr)
    if skipped := [row["name"] for row in rows if row["status"] == "skipped"]:
        names = ", ".join(skipped)
        _print(f"kerf: not measured, since the baseline was not: {names}", sys.stderr)
    return bool(errors)


def list_names(parsed: argparse.Namespace) -> None:
    """List models, methods, experiments or runs, with the name first on each line."""
    rows = list(_runs(_out(parsed)) if parsed.what == "runs" else _known(parsed.what))
    if parsed.json:
        print(json.dumps(rows, indent=1))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        _print(f"{row['name'].ljust(width)}  {row['about']}")


def _known(what: str) -> Iterator[dict[str, str]]:
    if what == "models":
        from kerf.models.registry import MODELS, origin

        for name, preset in MODELS.items():
            yield {"name": name, "about": f"{origin(name)} ({preset.source.licence})"}
    elif what == "experiments":
        from kerf.workbench.run import experiment

        for name in experiment.names():
            title = experiment.find(name).read_text().partition("\n")[0].lstrip("# ")
            yield {"name": name, "about": title}
    else:
        from kerf.config import METHODS, PRUNING_METHODS, Reconstruct

        for kind, methods in (("quantize", METHODS), ("prune", PRUNING_METHODS)):
            for name, method in methods.items():
                keys = ", ".join(method.parameters.model_fields)
                yield {"name": name, "about": f"{kind}: {method.help}", "keys": keys}
        about = "a step after quantize or prune: learn block by block what they left"
        yield {"name": "reconstruct", "about": about, "keys": ", ".join(Reconstruct.model_fields)}


def _runs(out: Path) -> Iterator[dict[str, str]]:
    from kerf.workbench.run import history

    for folder in history.run_folders(history.history(out)):
        try:
            content = history.read(folder)
            count = len(content["candidates"]) - 1
            about = f"{content.get('verdict')}, {content['model']['id']}, {count} candidates"
        except history.Damaged as problem:
            about = f"damaged: {problem}"
        except history.Unreadable as problem:
            about = f"unreadable results.json (it {problem})"
        yield {"name": f"{folder.parent.name}/{folder.name}", "about": about}


def compare(parsed: argparse.Namespace) -> None:
    """Compare two candidates of finished runs, paired by item."""
    from kerf.evaluate import ab
    from kerf.workbench.report.ab_text import text
    from kerf.workbench.run import history

    out = _out(parsed)
    sides = history.find("A", parsed.a, out), history.find("B", parsed.b, out)
    comparison = ab.compare(*sides)
    _print(json.dumps(comparison, indent=1, allow_nan=False) if parsed.json else text(comparison))


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
    notebooks = {sha256(path) for path in (shipped() / "notebooks").glob("*.ipynb")}
    unused: list[Path] = []
    by_kind: dict[str, list[float]] = defaultdict(list)  # sizes in MB, as in by_reason
    by_reason: dict[str, list[float]] = defaultdict(list)
    for folder in sorted((data_folder() / "cache").glob("[!.]*/")):
        size = sum(path.lstat().st_size for path in folder.rglob("*")) / 1e6
        by_kind[folder.name.rpartition("-")[0]].append(size)
        if reason := _why_unused(folder, notebooks):
            by_reason[reason].append(size)
            unused.append(folder)
    for kind, sizes in sorted(by_kind.items()):
        _print(f"{kind:12} {len(sizes):5} {sum(sizes):10.1f} MB")
    for reason, sizes in sorted(by_reason.items()):
        _print(f"{reason}: {len(sizes)}, {sum(sizes):.1f} MB")
    for folder in [] if parsed.dry_run else unused:
        shutil.rmtree(folder, ignore_errors=True)
    done = "would be removed; nothing was" if parsed.dry_run else "removed"
    removed, total = (sum(map(sum, groups.values())) for groups in (by_reason, by_kind))
    count = sum(map(len, by_kind.values()))
    _print(f"{len(unused)} of {count} artifacts {done}, {removed:.1f} of {total:.1f} MB")


def _why_unused(folder: Path, notebooks: set[str]) -> str:
    """Why no run can use an artifact; empty if a run may."""
    try:
        key = meta(folder)["key"]
        if key["code"] != code.digest(tuple(key["roots"])):
            return "made by other code"
    except (InputError, KeyError, TypeError, OSError, ValueError):
        return "damaged, or of an earlier version of Kerf"
    if any(key["packages"].get(name) != packages().get(name) for name in PACKAGES):
        return "made with other packages"
    return "" if key.get("notebook") in {None, *notebooks} else "of a notebook that has changed"


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
