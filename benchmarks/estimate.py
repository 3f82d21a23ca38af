"""How far the estimate of `kerf check` is from what runs took: the ratio must lie between 1/2 and 2.

Compares it with the newest run of each experiment in the history of which no stage was reused, and that ran on this machine
with the present code. Nothing else should run beside either.

    python benchmarks/estimate.py [--out DIR] minilm minilm-int8 smollm2
"""

import argparse
from pathlib import Path

from kerf.core.cache import machine
from kerf.core.paths import root
from kerf.workbench.run import estimate, experiment, history, plan

parser = argparse.ArgumentParser()
parser.add_argument("experiments", nargs="+")
parser.add_argument("--out", type=Path, default=root())
arguments = parser.parse_args()

for path in arguments.experiments:
    checked = experiment.read(path)
    description = plan.check(checked, arguments.out)
    guess, _ = estimate.estimate(checked, description)
    for folder in reversed(
        list(history.run_folders(history.history(arguments.out) / checked.name))
    ):
        run = history.read(folder)
        manifest, rows = run["manifest"], run["candidates"]
        fresh = not any(stage["reused"] for stage in manifest["stages"])
        if not fresh or manifest["cpu"]["model"] != machine()["model"]:
            continue
        values = [row for entry in rows for row in entry["metrics"]]
        memory = max(row["value"] for row in values if row["name"] == "rss_peak_bytes")
        disk = sum(entry["bytes_on_disk"] for entry in rows[1:])
        for what, estimated, actual in (
            ("minutes", guess.seconds / 60, manifest["seconds"] / 60),
            ("GB of memory", guess.memory / 1e9, memory / 1e9),
            ("GB of candidates", guess.disk / 1e9, disk / 1e9),
        ):
            print(
                f"{checked.name}: {what}: {estimated:.2f} estimated, {actual:.2f} taken, {estimated / actual:.2f}"
            )
        break
    else:
        print(f"{checked.name}: {guess.seconds / 60:.1f} minutes estimated; no run to compare with")
