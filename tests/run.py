"""`make test`: every test, and every notebook under nbval on a copy with small parameters, in one pytest.

The notebooks' own defaults stay the experiment's; papermill puts small parameters into the copies.
"""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import papermill
from support.board import run_of, write
from support.small import write_causal, write_model, write_reranker

ROOT = Path(__file__).resolve().parents[1]
ENCODER = {
    "texts": ["news", "everyday"],
    "sentences": 40,
    "retrieval": ["news"],
    "queries": 40,
    "passages": 30,
    "classification": [],
}
SMALL = {
    "calibrate": {"samples": 48},
    "quantize": {"samples": 48, "step": {"method": "gptq", "bits": 3, "group_size": 64}},
    "compare": {
        "samples": 48,
        "evaluation": ENCODER | {"sentences": 60},
        "steps": [{"quantize": {"method": "rtn", "bits": 4, "clip": "mse"}}],
    },
}


# These cut or train every layer many times: a small model of random weights says as much about the notebook.
SMALL |= {
    "reconstruct": {
        "samples": 48,
        "steps": 20,
        "joint_steps": 10,
        "augmentation_factor": 2,
        "before": [
            {"quantize": {"method": "gptq", "bits": 2, "group_size": 32, "clip": "hessian"}}
        ],
    },
    "prune": {"samples": 48},
    "sensitivity": {"samples": 48, "group_size": 32, "budget_bytes": None},
    "kernels": {"samples": 48},
    "ab": {
        "samples": 48,
        "evaluation": ENCODER,
        "a": [{"quantize": {"method": "rtn", "bits": 8}}],
        "b": [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32}}],
    },
    "train_reranker": {"steps": 3, "passages": 40},
    "resources": {
        "samples": 32,
        "rounds": 1,
        "evaluation": ENCODER,
        "candidates": {"int8": [{"quantize": {"method": "static"}}]},
    },
    "orders": {"samples": 48, "group_size": 32, "sentences": 60},
    "explore": {"samples": 48, "group_size": 32},
    "ingredients": {
        "samples": 48,
        "group_size": 32,
        "sentences": 60,
        "reconstruct_steps": 20,
        "joint_steps": 10,
    },
}
ON_CAUSAL = {
    "tasks": {
        "samples": 8,
        "max_length": 64,
        "documents": 20,
        "steps": [{"quantize": {"method": "rtn", "bits": 2, "group_size": 32}}],
    }
}
TINY = (
    "prune",
    "reconstruct",
    "sensitivity",
    "ingredients",
    "orders",
    "kernels",
    "ab",
    "resources",
    "explore",
)
RERANKER = {  # the same notebooks on a small reranker
    "kernels": {"samples": 48},
    "compare": {
        "samples": 48,
        "evaluation": {"retrieval": ["news"], "queries": 40},
        "steps": [{"quantize": {"method": "rtn", "bits": 4}}],
    },
}
CAUSAL = {  # the same notebooks on a small language model
    name: {"samples": 8, "max_length": 64, **parameters}
    for name, parameters in {
        "calibrate": {},
        "quantize": {"step": {"method": "gptq", "bits": 3, "group_size": 32}},
        "prune": {"step": {"method": "sparsegpt", "pattern": "2:4"}},
        "reconstruct": {
            key: SMALL["reconstruct"][key]
            for key in ("steps", "joint_steps", "augmentation_factor", "before")
        },
        "compare": {
            "evaluation": {
                "texts": ["news", "everyday"],
                "num_chunks": 4,
                "seq_len": 64,
                "passages": 20,
                "tasks": ["piqa"],
                "items": 10,
            },
            "steps": [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32}}],
        },
    }.items()
}


def copies(folder: Path) -> None:
    """Write a copy of every notebook with small parameters into `folder`."""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    tiny = str(write_model(folder / "tiny"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if path.stem in ON_CAUSAL or path.stem == "leaderboard":
            continue
        parameters = SMALL[path.stem] | (
            {"model": tiny}
            if path.stem in TINY
            else {"encoder": tiny}
            if path.stem == "train_reranker"
            else {}
        )
        papermill.execute_notebook(path, folder / path.name, parameters, prepare_only=True)
    for day in (20, 21):
        write(folder / "reports" / "history" / "grid" / f"run-{day}", run_of(day=day))
    papermill.execute_notebook(
        ROOT / "notebooks" / "leaderboard.ipynb",
        folder / "leaderboard.ipynb",
        {"reports": str(folder / "reports")},
        prepare_only=True,
    )
    reranker = str(write_reranker(folder / "reranker"))
    for name, parameters in RERANKER.items():
        target = folder / f"reranker_{name}.ipynb"
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb",
            target,
            {**parameters, "model": reranker},
            prepare_only=True,
        )
    pruned = {**SMALL["reconstruct"], "before": [{"prune": {"method": "sparsegpt"}}], "model": tiny}
    papermill.execute_notebook(
        ROOT / "notebooks" / "reconstruct.ipynb",
        folder / "pruned_reconstruct.ipynb",
        pruned,
        prepare_only=True,
    )
    causal = str(write_causal(folder / "causal"))
    for name, parameters in {**CAUSAL, **ON_CAUSAL}.items():
        target, parameters = folder / f"causal_{name}.ipynb", {**parameters, "model": causal}
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb", target, parameters, prepare_only=True
        )


def main() -> int:
    """Run pytest; arguments are passed on to it."""
    with tempfile.TemporaryDirectory() as scratch:
        notebooks = Path(scratch) / "notebooks"
        notebooks.mkdir()
        copies(notebooks)
        nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300"]
        # A file to a core: most of the time goes into starting kernels and processes, which more threads do not help.
        # What hangs is one failed test, not a CI that ends without an answer.
        limit = ["--timeout=900"]
        workers = ["-n", str(len(os.sched_getaffinity(0))), "--dist", "loadfile"]
        command = [
            sys.executable,
            "-m",
            "pytest",
            *nbval,
            *limit,
            *workers,
            "-q",
            "--durations=12",
            "-rs",
            str(notebooks),
            "tests",
        ]
        environment = {
            **os.environ,
            "KERF_ROOT": str(ROOT),
            "IPYTHONDIR": scratch,
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [*command, *sys.argv[1:]], cwd=ROOT, env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
