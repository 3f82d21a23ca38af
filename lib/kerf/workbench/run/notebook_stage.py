"""One stage: a notebook run by papermill in a kernel of its own, and cached with its HTML and the path of its result."""

import atexit
import json
import logging
import os
import re
import sys
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kerf.config.methods import METHODS, PRUNING_METHODS
from kerf.core.cache import HANDOVER, NOTICE, artifact, meta, published
from kerf.core.code import APART, imported
from kerf.core.digests import sha256
from kerf.core.errors import printable, refuse
from kerf.core.paths import shipped
from kerf.data import own_files
from kerf.models import families, registry
from kerf.workbench.run.kernel_forkserver import KernelForkserver
from kerf.workbench.run.notebook_html import notebook_to_html

CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"  # system libraries of macOS cannot fork


class StageFailed(RuntimeError):
    """A notebook did not finish. error: notebook, cell and message, as in results.json."""

    def __init__(self, notebook: str, cell: int | None, message: str) -> None:
        message = printable(message)
        super().__init__(f"{notebook}, cell {cell}: {message}")
        self.error = {"notebook": notebook, "cell": cell, "message": message}


@dataclass(frozen=True)
class Stage:
    """A finished stage: result folder, executed notebook, seconds in this run, and the run that executed it."""

    result: Path
    notebook: Path
    seconds: float
    reused: bool
    run: str


def notebook_path(name: str) -> Path:
    """Path of one of Kerf's notebooks."""
    return shipped() / "notebooks" / f"{name}.ipynb"


def _cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def _source(cells: Iterable[dict]) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells)


def check_parameters(name: str, parameters: dict) -> None:
    """Refuse a parameter that the notebook does not have: papermill itself would only warn."""
    path = notebook_path(name)
    if not path.is_file():
        raise refuse("notebook", name, f"a file in {path.parent}")
    cells = (cell for cell in _cells(path) if "parameters" in cell["metadata"].get("tags", ()))
    known = re.findall(r"^(\w+) *=", _source(cells), re.M)
    for key, value in parameters.items():
        if key not in known:
            raise refuse(key, value, f"a parameter of {path.name}; it has {', '.join(known)}")


def _code(name: str, parameters: dict) -> list[str]:
    """Modules that a notebook's numbers depend on: those it imports, and those its parameters choose from a registry."""
    cells = [cell for cell in _cells(notebook_path(name)) if cell["cell_type"] == "code"]
    modules = [name for name in imported(_source(cells)) if not name.startswith(APART)]
    methods, chosen = {**PRUNING_METHODS, **METHODS}, set()
    for step in _steps(parameters):
        if step["method"] in methods:
            chosen |= {*methods[step["method"]].modules(step.get("backend"))}
    if "kerf.evaluate" in modules and "model" in parameters:
        family = families.of(registry.resolve(parameters["model"]))
        chosen |= {family.EVALUATION, "kerf.evaluate.measure"}
    return [*modules, *sorted(chosen)]


def _steps(value: object) -> Iterator[dict]:
    """Parameters of all steps in a notebook's parameters, at any depth: dictionaries with a method."""
    if isinstance(value, dict) and isinstance(value.get("method"), str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _steps(item)


def run_stage(name: str, parameters: dict, inputs: dict, partial: Path) -> Stage:
    """Run or reuse a notebook; inputs: digests of its data; partial: path for a notebook that raises StageFailed."""
    key = {"notebook": sha256(notebook_path(name)), "parameters": parameters, "inputs": inputs}
    executed: list[Path] = []
    start = time.perf_counter()

    def make(folder: Path) -> None:
        executed.append(folder)
        _execute(name, parameters, folder, partial)

    folder = artifact("stage", key, make, code=_code(name, parameters))
    partial.unlink(missing_ok=True)
    seconds, run = time.perf_counter() - start, meta(folder)["run"]
    return Stage(published(folder), folder / f"{name}.ipynb", seconds, not executed, run)


@cache
def _forkserver() -> KernelForkserver:
    server = KernelForkserver()
    atexit.register(server.close)
    return server


@cache
def _kernel_manager_class() -> type:
    """Class of kernel managers: kernels are forked from a warm process where processes can fork."""
    from jupyter_client import AsyncKernelManager

    if not CAN_FORK:
        return AsyncKernelManager

    class WarmKernelManager(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            # The server removes its folder, and with it this file.
            self.connection_file = str(_forkserver().folder / f"kernel-{uuid.uuid4()}.json")

        def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
            command = _forkserver().kernel_command()
            return [part.format(connection_file=self.connection_file) for part in command]

    return WarmKernelManager


def _execute(name: str, parameters: dict, folder: Path, partial: Path) -> None:
    """Execute a notebook and write its HTML; a kernel that dies is started once more."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    options = {
        "kernel_name": "python3",
        "kernel_manager_class": _kernel_manager_class(),
        # Without encryption each kernel warns that other users of the machine can open its sockets.
        "config": Config({"KernelManager": {"transport_encryption": "required"}}),
        "progress_bar": False,
    }
    target = folder / f"{name}.ipynb"
    logging.getLogger("papermill").setLevel(logging.ERROR)
    for attempt in (1, 2):
        try:
            handover = {"KERF_HANDOVER": str(folder / HANDOVER)}  # for this stage's kernel
            with warnings.catch_warnings(), patch.dict(os.environ, handover):
                warnings.simplefilter("ignore")
                papermill.execute_notebook(notebook_path(name), target, parameters, **options)
            break
        except papermill.PapermillExecutionError as error:
            message = f"{error.ename}: {error.evalue}".splitlines()[0]
            _hide_paths(target, parameters)
            message = own_files.hidden(message, _texts_of(parameters))
            raise _failed(name, error.cell_index, message, target, partial) from None
        except RuntimeError as error:  # the kernel was killed, or did not start
            if attempt == 2:
                message = f"the kernel died twice ({error}); the system may have run out of memory"
                # papermill marks all cells as completed, so the last one with a count is the cell that ran.
                cells = enumerate(_cells(target) if target.is_file() else [])
                started = [n for n, cell in cells if cell.get("execution_count") is not None]
                raise _failed(name, max(started, default=None), message, target, partial) from None
            notice = f"the kernel died ({error}); the stage is tried once more"
            print(f"kerf: {name}.ipynb: {notice}", file=sys.stderr)
            if CAN_FORK and not isinstance(error, DeadKernelError):
                _forkserver().end()  # the server itself may hang
    _hide_paths(target, parameters)
    notebook_to_html(target)
    _repeat_notices(target)


def _texts_of(parameters: dict) -> dict:
    """The parameters that may name files of a user's own; the model's directory is in the report."""
    return {key: value for key, value in parameters.items() if key in ("texts", "evaluation")}


def _hide_paths(path: Path, parameters: dict) -> None:
    """Names of own files without their folders, in an executed notebook."""
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        path.write_text(own_files.hidden(text, _texts_of(parameters)), encoding="utf-8")


def _repeat_notices(path: Path) -> None:
    """Repeat on standard error what the kernel reported about damage in the cache."""
    outputs = [output for cell in _cells(path) for output in cell.get("outputs", [])]
    streams = ["".join(out["text"]) for out in outputs if out.get("name") == "stderr"]
    for line in "".join(streams).splitlines():
        if line.startswith(NOTICE):
            print(line, file=sys.stderr)


def _failed(name: str, cell: int | None, message: str, target: Path, partial: Path) -> StageFailed:
    """Write the partial notebook, and build the exception."""
    import nbformat

    if target.is_file():
        notebook = nbformat.read(target, 4)
        note = f"**This notebook did not finish.** It stopped in cell {cell}: {message}"
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(note))
        notebook.metadata["kerf"] = {"status": "failed", "cell": cell, "message": message}
        for pending in notebook.cells[cell + 2 :] if cell is not None else []:
            if "papermill" in pending.metadata:
                pending.metadata["papermill"]["status"] = "pending"
        partial.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, partial)
    return StageFailed(f"{name}.ipynb", cell, message)
