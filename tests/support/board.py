"""Made-up runs for a leaderboard."""

import json

from support.reports import entry
from support.reports import page as page  # a fixture

SIZES = {"large": (0.99, 20.0), "middle": (0.95, 10.0), "worse": (0.90, 15.0), "small": (0.80, 5.0)}


def run_of(experiment="grid", day=20, sizes=SIZES, **more):
    baseline = entry(
        "baseline", "PASS", 1.0, steps=[], gates=[], kernel="real", parameters={}, layers=[]
    )
    made = [
        entry(name, "PASS", value) | {"bytes_on_disk": int(mb * 1e6)}
        for name, (value, mb) in sizes.items()
    ]
    return {
        "schema": 1,
        "experiment": experiment,
        "verdict": "PASS",
        "release": ["middle", "large"],
        "criteria": ["encoder"],
        "model": {"id": "minilm", "kind": "encoder", "parameters": 22_713_216, "bytes": 90_868_376},
        "grade_rule": "",
        "texts": [],
        "candidates": [baseline, *made],
        "manifest": {
            "run": f"run-{day}",
            "kerf": "0",
            "python": "3",
            "packages": {},
            "cpu": {},
            "seed": 0,
            "data": {},
            "started": f"2026-11-{day}T10:00:00+00:00",
            "seconds": 400.0,
        },
    } | more


def write(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
