"""One stage: one parameterized notebook, run by papermill in a kernel of its own, kept by content.

A finished stage is an artifact (the executed notebook, its HTML, and where its result lies), so the next
run takes it from there. A stage that dies leaves a partial notebook that says so on its first line.
"""

import ast
import atexit
import json
import logging
import os
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

from kerf.config.by_method import ByMethod
from kerf.config.methods import METHODS, PRUNING_METHODS, STEPS
from kerf.core import atomic
from kerf.core.cache import HANDOVER, NOTICE, artifact, meta, published
from kerf.core.code import APART, imported
from kerf.core.digests import sha256
from kerf.core.errors import printable, refuse
from kerf.core.paths import shipped
from kerf.models import families, registry
from kerf.workbench.run.kernel_forkserver import KernelForkserver
from kerf.workbench.run.notebook_html import notebook_to_html


class StageFailed(RuntimeError):
    """A notebook did not finish. Carries notebook, cell and message, as results.json has them."""

    def __init__(self, notebook: str, cell: int | None, message: str) -> None:
        message = printable(message)
        super().__init__(f"{notebook}, cell {cell}: {message}")
        self.error = {"notebook": notebook, "cell": cell, "message": message}


@dataclass(frozen=True)
class FinishedStage:
    """A finished stage: result folder, executed notebook, seconds it took now, and the run that made it."""

    result: Path
    notebook: Path
    seconds: float
    reused: bool
    run: str


def notebook_path(name: str) -> Path:
    """Path of one of the clone's notebooks."""
    return shipped() / "notebooks" / f"{name}.ipynb"


@cache
def accepted(name: str) -> list[str]:
    """Parameters of a notebook: what its `parameters` cell assigns."""
    cells = json.loads(notebook_path(name).read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in tagged))
    return [node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)]


def check_parameters(name: str, parameters: dict) -> None:
    """Refuse a parameter that the notebook does not have: papermill itself would only warn."""
    if not notebook_path(name).is_file():
        raise refuse("notebook", name, f"a file in {notebook_path(name).parent}")
    known = accepted(name)
    for key in parameters:
        if key not in known:
            raise refuse(
                key, parameters[key], f"a parameter of {name}.ipynb; it has {', '.join(known)}"
            )


def _code(name: str, parameters: dict) -> list[str]:
    """Modules that a notebook's numbers depend on: those that it imports, and those that its parameters choose by a registry."""
    cells = json.loads(notebook_path(name).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    numbers = [module for module in imported(text) if not module.startswith(APART)]
    chosen = {module for step in _steps(parameters) for module in _method(step)}
    if "kerf.evaluate" in numbers and "model" in parameters:
        family = families.of(registry.resolve(parameters["model"]))
        chosen |= {family.EVALUATION, "kerf.evaluate.measure"}
    return [*numbers, *sorted(chosen)]


def _steps(value: object) -> Iterator[dict]:
    """Parameters of all steps in a notebook's parameters, however deep they lie, with their methods."""
    if isinstance(value, dict):
        if "method" in value:
            yield value
        for kind in STEPS:
            if isinstance(value.get(kind), dict) and isinstance(STEPS[kind], ByMethod):
                yield {"method": STEPS[kind].default, **value[kind]}
        yield from (step for each in value.values() for step in _steps(each))
    elif isinstance(value, list):
        yield from (step for each in value for step in _steps(each))


def _method(step: dict) -> list[str]:
    """Modules of a step's method, and of its backend."""
    entry = {**PRUNING_METHODS, **METHODS}.get(step["method"])
    return entry.modules(step.get("backend")) if entry else []


def run_stage(name: str, parameters: dict, inputs: dict, partial: Path) -> FinishedStage:
    """Run or reuse notebook `name` with `parameters`; `inputs`: digests of what it reads.

    partial: where a notebook that did not finish is left. Raises StageFailed.
    """
    key = {"notebook": sha256(notebook_path(name)), "parameters": parameters, "inputs": inputs}
    clock = time.perf_counter()
    made = []

    def make(folder: Path) -> None:
        made.append(True)
        _execute(name, parameters, folder, partial)

    folder = artifact("stage", key, make, code=_code(name, parameters))
    partial.unlink(missing_ok=True)
    return FinishedStage(
        published(folder),
        folder / f"{name}.ipynb",
        time.perf_counter() - clock,
        not made,
        meta(folder)["run"],
    )


@cache
def _nursery() -> KernelForkserver:
    nursery = KernelForkserver()
    atexit.register(nursery.close)
    return nursery


@cache
def _kernels():
    """Kernel manager class whose kernels start warm where processes can fork, else Jupyter's own."""
    from jupyter_client import AsyncKernelManager

    if not _can_fork():
        return AsyncKernelManager

    class WarmKernelManager(AsyncKernelManager):
        def __init__(self, **options):
            super().__init__(**options)
            self.connection_file = str(
                _nursery().folder / f"kernel-{uuid.uuid4()}.json"
            )  # goes with the folder

        def format_kernel_cmd(self, extra_arguments=None):
            return [
                part.format(connection_file=self.connection_file)
                for part in _nursery().kernel_command()
            ]

    return WarmKernelManager


def _can_fork() -> bool:
    return (
        hasattr(os, "fork") and sys.platform != "darwin"
    )  # macOS's own libraries do not survive a fork


def _execute(name: str, parameters: dict, folder: Path, partial: Path) -> None:
    with patch.dict(
        os.environ, KERF_HANDOVER=str(folder / HANDOVER)
    ):  # kernels inherit it, of this stage alone
        _run_notebook(name, parameters, folder / f"{name}.ipynb", partial)
    notebook_to_html(folder / f"{name}.ipynb")
    _pass_on(folder / f"{name}.ipynb")


def _run_notebook(name: str, parameters: dict, target: Path, partial: Path) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    # Without it every kernel warns that its sockets are open to whoever shares the machine.
    encrypted = Config({"KernelManager": {"transport_encryption": "required"}})
    options = {
        "kernel_name": "python3",
        "kernel_manager_class": _kernels(),
        "config": encrypted,
        "progress_bar": False,
    }
    logging.getLogger("papermill").setLevel(logging.ERROR)
    for last in (False, True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                papermill.execute_notebook(notebook_path(name), target, parameters, **options)
            return
        except papermill.PapermillExecutionError as error:
            message = f"{error.ename}: {error.evalue}".splitlines()[0]
            raise _failed(name, error.cell_index, message, target, partial) from None
        except RuntimeError as error:  # the kernel was killed, or it did not start
            if last:
                message = f"the kernel died twice ({error}); the system may have run out of memory"
                raise _failed(name, _last_started(target), message, target, partial) from None
            print(
                f"kerf: {name}.ipynb: the kernel died ({error}); the stage is tried once more",
                file=sys.stderr,
            )
            if _can_fork() and not isinstance(error, DeadKernelError):
                _nursery().end()  # it may be what does not answer


def _pass_on(path: Path) -> None:
    """Say on standard error what the kernel found damaged in the cache: nobody would look for it in the notebook."""
    outputs = [
        output
        for cell in json.loads(path.read_text())["cells"]
        for output in cell.get("outputs", [])
    ]
    for line in "".join(
        "".join(each["text"]) for each in outputs if each.get("name") == "stderr"
    ).splitlines():
        if line.startswith(NOTICE):
            print(line, file=sys.stderr)


def _last_started(path: Path) -> int | None:
    """Index of the cell that ran when the kernel died: papermill marks them all as completed."""
    if not path.is_file():
        return None
    cells = json.loads(path.read_text())["cells"]
    return max(
        (i for i, c in enumerate(cells) if c.get("execution_count") is not None), default=None
    )


def _failed(name: str, cell: int | None, message: str, target: Path, partial: Path) -> StageFailed:
    import nbformat

    if target.is_file():
        notebook = nbformat.read(target, 4)
        note = f"**This notebook did not finish.** It stopped in cell {cell}: {message}"
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(note))
        notebook.metadata["kerf"] = {"status": "failed", "cell": cell, "message": message}
        for index, each in enumerate(notebook.cells[1:]):
            if cell is not None and index > cell and "papermill" in each.metadata:
                each.metadata["papermill"]["status"] = "pending"
        partial.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, partial)
    return StageFailed(f"{name}.ipynb", cell, message)


def publish(done: FinishedStage, folder: Path, title: str) -> None:
    """Copy the executed notebook and its HTML into the report's folder, under `title`."""
    for path in (done.notebook, done.notebook.with_suffix(".html")):
        atomic.copy(path, folder / f"{title}{path.suffix}")
