"""The command line: `kerf run | check | list | ab | report | export | clean | lab`.

Exit codes: 0 it ran; 1 with --gate, the verdict is not PASS, and nothing else; 2 bad input; 3 a stage failed, or Kerf did.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path

from kerf.core import device
from kerf.core.errors import InputError, escaped, refuse
from kerf.core.user_files import given_path
from kerf.workbench.crash_report import explain


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A refusal, and whatever else went wrong, is one line on standard error."""
    parsed = _parser().parse_args(arguments)
    _stop_like_an_interrupt()
    try:
        code = parsed.command(parsed)
        sys.stdout.flush()  # a closed pipe is noticed here, not when nobody can tell of it any more
        return code
    except InputError as refusal:
        print(f"kerf: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(
            "kerf: stopped; what was finished is kept, and the next run goes on from there",
            file=sys.stderr,
        )
        return 128 + (stopped.args or [signal.SIGINT])[0]
    except (
        BaseException
    ) as error:  # Rust's panics and sys.exit() are no Exception, and would end in 1 too
        return explain(error, getattr(parsed, "out", None))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        super().error(escaped(message))


def _stop_like_an_interrupt() -> None:
    """Let whoever asks this process to end (a CI, a closed terminal) have what Ctrl-C has; what nohup ignores stays so."""

    def stop(number, _):
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(number) is signal.SIG_DFL
        ):
            signal.signal(number, stop)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kerf", description="Compress a model, then measure what the cut cost.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("run", run, "run an experiment and write its report"),
        ("check", check, "validate everything that needs no heavy work"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(command=function)
        command.add_argument(
            "experiment", metavar="EXPERIMENT", help="a name of `kerf list experiments` or a file"
        )
        command.add_argument(
            "--model", help="use this model: a known name, a hub id or a directory"
        )
        command.add_argument(
            "-p", dest="overrides", action="append", default=[], metavar="PATH=VALUE"
        )
        command.add_argument("--out", help="where reports/ and data/runs/ go (default: the clone)")
        command.add_argument("--device", help="of torch, where the models live (default: cpu)")
        if name == "run":
            command.add_argument(
                "--gate", action="store_true", help="exit 1 unless the verdict is PASS"
            )
            command.add_argument("--fresh", action="store_true", help="make everything again")
    command = commands.add_parser("list", help="list what there is")
    command.add_argument("what", choices=["models", "methods", "experiments", "runs"])
    command.add_argument("--json", action="store_true")
    command.add_argument("--out", help="whose runs (default: the clone)")
    command.set_defaults(command=listing)
    command = commands.add_parser("ab", help="paired comparison of two candidates of finished runs")
    for name in ("A", "B"):
        command.add_argument(
            name.lower(),
            metavar=name,
            help="EXPERIMENT/CANDIDATE of the newest run, or EXPERIMENT/RUN/CANDIDATE",
        )
    command.add_argument("--json", action="store_true")
    command.add_argument("--out", help="whose runs (default: the clone)")
    command.set_defaults(command=versus)
    command = commands.add_parser(
        "report", help="where an experiment's newest report is; as PDF too"
    )
    command.add_argument("experiment", metavar="EXPERIMENT", help="a folder of reports/")
    command.add_argument(
        "--pdf",
        action="store_true",
        help="print it beside the page, with a Chromium that is installed",
    )
    command.add_argument("--out", help="whose reports (default: the clone)")
    command.set_defaults(command=report)
    command = commands.add_parser(
        "export", help="write a language model's candidate as a GPTQ checkpoint"
    )
    command.add_argument(
        "candidate", metavar="CANDIDATE", help="its directory, data/runs/EXPERIMENT/NAME"
    )
    command.add_argument(
        "folder", metavar="FOLDER", help="the checkpoint, a folder that does not exist yet"
    )
    command.add_argument(
        "--format", default="gptq", help="gptq (zero points less one, as AutoGPTQ) or gptq_v2"
    )
    command.set_defaults(command=export)
    command = commands.add_parser(
        "clean", help="remove what the cache holds and no run can use any more"
    )
    command.add_argument("--dry-run", action="store_true", help="say what would be removed")
    command.set_defaults(command=clean)
    command = commands.add_parser(
        "lab", help="JupyterLab on the notebooks, on localhost, with a token"
    )
    command.set_defaults(command=lab)
    return parser


def _prepare(parsed):
    from kerf.workbench.run import experiment, runner

    os.environ["KERF_DEVICE"] = device.check(parsed.device or device.current())
    out = _out(parsed)
    read = experiment.read(parsed.experiment, parsed.overrides, parsed.model)
    return read, out, runner.check(read, out)


def _out(parsed) -> Path:
    from kerf.workbench.run.history import default_out

    return (
        default_out()
        if parsed.out is None
        else _path("--out", parsed.out, "a directory that can be written")
    ).resolve()


def _path(parameter: str, text: str, accepted: str) -> Path:
    path = given_path(text)
    if path is None:
        raise refuse(parameter, text, accepted)
    return path


def check(parsed) -> int:
    """`kerf check`: say what would run."""
    from kerf.evaluate.stats import LEAST_DOCUMENTS

    read, out, description = _prepare(parsed)
    _say(
        f"{read.name}: {read.model} ({description['parameters']:,} parameters), "
        f"{len(read.candidates)} candidates, release {', '.join(read.release)}: ready to run into {out}"
    )
    if description["documents"] < LEAST_DOCUMENTS:
        print(
            f"Its evaluation text comes from {description['documents']} independent documents; with fewer than {LEAST_DOCUMENTS} "
            "there are no intervals, and gates stay INCONCLUSIVE."
        )
    return 0


def run(parsed) -> int:
    """`kerf run`: run, report, and say the verdict."""
    from kerf.workbench.report import exports, page
    from kerf.workbench.run import results
    from kerf.workbench.run.runner import Run

    read, out, description = _prepare(parsed)
    this = Run(read, out, parsed.fresh, _slug(parsed.model) if parsed.model else "")
    found = this.execute()
    this.report.mkdir(parents=True, exist_ok=True)
    content, pictures = results.assemble(this, description, found)
    results.write(this, content, found)
    exports.write(content, this.report)
    written = page.render_report(content, this.report, pictures)
    index = page.render_index(out / "reports")
    return _conclude(this, content, written, index, parsed.gate)


def _conclude(this, content: dict, page: Path, index: Path, gate: bool) -> int:
    reused = sum(stage["reused"] for stage in this.stages)
    _say(
        f"{this.name}: {content['verdict']} ({', '.join(content['release'])}) in {content['manifest']['seconds']:.0f} s; "
        f"{reused} of {this.total} stages reused"
    )
    failed = [c for c in content["candidates"] if c["status"] == "failed"]
    skipped = [c["name"] for c in content["candidates"] if c["status"] == "skipped"]
    broken = (content["resources"] or {}).get("error")
    for name, error in [(c["name"], c["error"]) for c in failed] + (
        [("resources", broken)] if broken else []
    ):
        _say(
            f"kerf: {name} failed in {error['notebook']}, cell {error['cell']}: {error['message']}",
            file=sys.stderr,
        )
    if skipped:
        _say(
            f"kerf: not measured, since the baseline was not: {', '.join(skipped)}", file=sys.stderr
        )
    _say(f"report: {page}\nall runs: {index}")
    if failed or broken:
        return 3
    return 1 if gate and content["verdict"] != "PASS" else 0


def _slug(model: str) -> str:
    """A model's name as part of a folder's name; the last two parts of a path tell enough."""
    return (
        re.sub(r"[^a-z0-9._-]+", "-", "-".join(Path(model).parts[-2:]).lower()).strip("-.")[:60]
        or "model"
    )


def listing(parsed) -> int:
    """`kerf list`: a name first on each line."""
    rows = {"models": _models, "methods": _methods, "experiments": _experiments, "runs": _runs}[
        parsed.what
    ](parsed)
    if parsed.json:
        print(json.dumps(rows, indent=1))
    else:
        width = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            _say(f"{row['name'].ljust(width)}  {row['about']}")
    return 0


def _models(_) -> list[dict]:
    from kerf.models.registry import MODELS, origin

    return [
        {"name": name, "about": f"{origin(name)} ({preset.source.licence})"}
        for name, preset in MODELS.items()
    ]


def _methods(_) -> list[dict]:
    from kerf.config import METHODS, PRUNING_METHODS, Reconstruct

    rows = [
        {
            "name": name,
            "about": f"{kind}: {method.help}",
            "keys": ", ".join(method.parameters.model_fields),
        }
        for kind, methods in (("quantize", METHODS), ("prune", PRUNING_METHODS))
        for name, method in methods.items()
    ]
    learn = "a step after quantize or prune: learn block by block what they left"
    return [
        *rows,
        {"name": "reconstruct", "about": learn, "keys": ", ".join(Reconstruct.model_fields)},
    ]


def _experiments(_) -> list[dict]:
    from kerf.workbench.run import experiment

    first = {
        name: experiment.find(name).read_text().splitlines()[0].lstrip("# ")
        for name in experiment.names()
    }
    return [{"name": name, "about": text} for name, text in first.items()]


def _runs(parsed) -> list[dict]:
    from kerf.workbench.run.history import read, runs
    from kerf.workbench.run.record import Damaged, Unreadable

    rows = []
    for folder in runs(_out(parsed)):
        try:
            content = read(folder)
            about = f"{content.get('verdict')}, {content['model']['id']}, {len(content['candidates']) - 1} candidates"
        except Damaged as problem:
            about = f"damaged: {problem}"
        except Unreadable as problem:
            about = f"unreadable results.json (it {problem})"
        rows.append({"name": f"{folder.parent.name}/{folder.name}", "about": about})
    return rows


def versus(parsed) -> int:
    """`kerf ab`: who wins on what."""
    from kerf.evaluate import ab
    from kerf.workbench.run import history

    found = ab.compare(
        *(history.find(name, getattr(parsed, name.lower()), _out(parsed)) for name in ("A", "B"))
    )
    if parsed.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        from kerf.workbench.report.ab_text import text

        _say(text(found))
    return 0


def report(parsed) -> int:
    """`kerf report`: the path of a page, or of the PDF that was printed from it."""
    from kerf.core.errors import nearest
    from kerf.workbench.report.pdf import printed

    reports = _out(parsed) / "reports"
    known = {page.parent.name: page for page in reports.glob("*/index.html")}
    if parsed.experiment not in known:
        raise refuse(
            "EXPERIMENT",
            parsed.experiment,
            f"one with a report in {reports}; {nearest(parsed.experiment, known)}",
        )
    page = known[parsed.experiment]
    _say(printed(page, page.with_name("report.pdf")) if parsed.pdf else page)
    return 0


def export(parsed) -> int:
    """`kerf export`: a candidate that other libraries read."""
    from kerf.formats import gptq_checkpoint

    candidate = _path(
        "CANDIDATE", parsed.candidate, "a candidate's directory, as data/runs/EXPERIMENT/NAME"
    )
    folder = _path("FOLDER", parsed.folder, "a folder that does not exist yet")
    _say(gptq_checkpoint.export(candidate, folder, parsed.format))
    return 0


def clean(parsed) -> int:
    """`kerf clean`: the cache without what nothing can use."""
    from kerf.workbench import clean as cleaning

    entries = cleaning.survey()
    if not parsed.dry_run:
        cleaning.remove(entries)
    for line in cleaning.lines(entries, parsed.dry_run):
        _say(line)
    return 0


def _say(text: object, file=None) -> None:
    """Print lines that may hold names and texts of others."""
    print("\n".join(map(escaped, str(text).split("\n"))), file=file)


def lab(_) -> int:
    """`kerf lab`: replace this process by JupyterLab."""
    from kerf.core.paths import root, shipped

    os.environ["KERF_ROOT"] = str(root())
    notebooks = root() / "notebooks"
    if not notebooks.is_dir():  # an installed Kerf: what is opened is a copy
        shutil.copytree(shipped() / "notebooks", notebooks)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--notebook-dir={notebooks}",
        "--ip=127.0.0.1",
    ]
    if os.geteuid() == 0:  # as in a container; it is bound to this machine and asks for its token
        command.append("--allow-root")
    os.execv(sys.executable, command)


if __name__ == "__main__":
    sys.exit(main())
