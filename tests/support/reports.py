"""Made-up results.json of a run, and its page."""

import json

import pytest

from kerf.workbench.report.page import render_report


def metric(name, value, low, high, baseline=1.0):
    return {
        "name": name,
        "value": value,
        "low": low,
        "high": high,
        "baseline": baseline,
        "n": 400,
        "unit": "",
        "noise": {"low": 1.0, "high": 1.0},
    }


def gate(verdict, bound, needed=None):
    return {
        "criteria": "encoder",
        "metric": "cosine_mean",
        "op": ">=",
        "threshold": 0.7,
        "bound": bound,
        "verdict": verdict,
        "needed_n": needed,
        "source": "Kerf",
        "reason": "because",
    }


def entry(name, verdict, value, **more):
    half = 0.03
    return {
        "name": name,
        "status": "ok",
        "error": None,
        "reused": False,
        "steps": [{"quantize": {"bits": 2}}],
        "parameters": {"bits": {"value": 2, "from": "experiment"}},
        "bytes_on_disk": 9_000_000,
        "other_bytes": 700_000,
        "bits_per_weight": 3.2,
        "linear_bits": 2.28,
        "compression_ratio": 10.1,
        "sparsity": 0.0,
        "compress_seconds": 8.1,
        "compress_peak_rss_bytes": 900_000_000,
        "kernel": "dequantized",
        "backend": "torch",
        "metrics": [metric("cosine_mean", value, value - half, value + half)],
        "gates": [gate(verdict, value - half, 900 if verdict == "INCONCLUSIVE" else None)],
        "claims": [],
        "verdict": verdict,
        "grade": "B",
        "notebooks": {"compare": f"{name}/compare.ipynb"},
        "layers": [
            {"name": f"encoder.layer.{i}.output.dense", "bits": 2, "error": 0.01 * (i + 1)}
            for i in range(6)
        ],
    } | more


VECTORS = [
    {
        "precision": "int8",
        "rescored": True,
        "bytes": 384e6,
        "recall": 0.99,
        "low": 0.98,
        "high": 1.0,
        "milliseconds": 0.1,
    }
]


def taken(recommended="good", **more):
    def row(model, measure, value, ratio, unit="s", width=0.1):
        return {
            "model": model,
            "measure": measure,
            "unit": unit,
            "value": value,
            "low": value,
            "high": value,
            "ratio": ratio,
            "ratio_low": width and ratio - width,
            "ratio_high": width and ratio + width,
        }

    rows = [
        row(model, measure, value * ratio, ratio, unit)
        for model, ratio in (("baseline", 1), ("baseline again", 1.02), ("good", 0.25))
        for measure, value, unit in (
            ("until the first answer", 8, "s"),
            ("resident memory", 800e6, "bytes"),
            ("latency, 1 x 16 tokens", 0.02, "s"),
        )
    ]
    rows += [
        row("good", "throughput, 32 x 64 tokens", 300, 4.46, "texts a second"),
        row("good", "energy, 1 x 16 tokens", 0.5, 0.5, "J a text", None),
        {
            "model": "bad",
            "measure": "failed",
            "note": "the process ended with -11: <b>no message</b>",
        },
    ]
    return {
        "rows": rows,
        "vectors": [],
        "noisy": ["import"],
        "memory_limit": None,
        "threads": 2,
        "rounds": 6,
        "recommended": recommended,
        "run": "20260101T000000Z-abc",
        "error": None,
    } | more


@pytest.fixture
def page(tmp_path):
    failed = entry(
        "broken",
        "FAIL",
        0.5,
        status="failed",
        metrics=[],
        gates=[],
        layers=[],
        grade=None,
        error={
            "notebook": "quantize.ipynb",
            "cell": 7,
            "message": "ValueError: <img src=x onerror=alert(1)>",
        },
    )
    candidates = [
        entry("baseline", "PASS", 1.0, steps=[], gates=[], kernel="real", parameters={}, layers=[]),
        entry("good", "PASS", 0.85),
        entry("bad", "FAIL", 0.13),
        entry("unsure", "INCONCLUSIVE", 0.71),
        failed,
    ]
    results = {
        "schema": 1,
        "experiment": "page",
        "verdict": "FAIL",
        "release": ["good", "bad"],
        "criteria": ["encoder"],
        "model": {
            "id": "minilm",
            "kind": "encoder",
            "parameters": 22_713_216,
            "bytes": 90_868_376,
            "ignored_code": ["evil.<b>Evil</b> (config.json)"],
        },
        "grade_rule": "The rule.",
        "candidates": candidates,
        "texts": [],
        "resources": taken(vectors=VECTORS),
        "settings": {"calibration.samples": {"value": 256, "from": "command line"}},
        "manifest": {
            "run": "20260101T000000Z-abc",
            "kerf": "0",
            "python": "3.11",
            "packages": {"torch": "2"},
            "cpu": {"model": "x", "flags": [], "threads": 2},
            "seed": 0,
            "data": {"weights": "00"},
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": 12.0,
            "stages": [],
        },
    }
    picture = {"edges": [0, 0.5, 1], "baseline": [3, 4], "candidate": [5, 2]}
    path = render_report(results, tmp_path / "page", {"similarities": {"good": picture}})
    (tmp_path / "page" / "results.json").write_text(json.dumps(results))
    return path
