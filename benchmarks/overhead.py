"""Share of a fresh run's wall time that is not calibrating, quantizing or evaluating.

Overhead is kernel starts, imports in kernels, papermill, figures and rendering. Measurements in fresh
processes, their imports included, count as evaluation.

    python benchmarks/overhead.py [EXPERIMENT]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kerf.core.paths import data_folder


def inside(run: str) -> dict[str, float]:
    """Seconds inside the stages' own work, of everything that `run` made."""
    total = {"calibrate": 0.0, "quantize": 0.0, "evaluate": 0.0}
    for path in (data_folder() / "cache").glob("*/meta.json"):
        meta = json.loads(path.read_text())
        if meta["run"] != run:
            continue
        if meta["kind"] == "calibration":
            total["calibrate"] += meta["result"]["calibrate_seconds"]
        elif meta["kind"] == "candidate":
            total["quantize"] += meta["result"]["compress_seconds"]
        elif meta["kind"] in ("encoding", "comparison"):
            total["evaluate"] += meta["seconds"]
    return total


def main() -> None:
    """Run the experiment from nothing and print the shares."""
    experiment = sys.argv[1] if len(sys.argv) > 1 else "minilm"
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "kerf", "run", experiment, "--fresh", "--out", out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results = json.loads((Path(out) / "reports" / experiment / "results.json").read_text())
    manifest = results["manifest"]
    parts = inside(manifest["run"])
    overhead = manifest["seconds"] - sum(parts.values())
    for name, took in (*parts.items(), ("overhead", overhead)):
        print(f"{name:10} {took:7.1f} s  {took / manifest['seconds']:6.1%}")
    print(f"{'run':10} {manifest['seconds']:7.1f} s; goal: overhead at most 40 %")


if __name__ == "__main__":
    main()
