"""Made-up results of runs, for what CI, a pull request and a model hub read of them."""

from kerf.evaluate import gates


def row(name, value, low, high, baseline=1.0, noise=(1.0, 1.0)):
    return {
        "name": name,
        "value": value,
        "low": low,
        "high": high,
        "baseline": baseline,
        "n": 400,
        "unit": "",
        "noise": {"low": noise[0], "high": noise[1]},
    }


def gate(verdict, bound=0.95, metric="cosine_mean", threshold=0.9, needed=None):
    return {
        "criteria": "encoder",
        "metric": metric,
        "op": ">=",
        "threshold": threshold,
        "bound": bound,
        "verdict": verdict,
        "needed_n": needed,
        "source": "Kerf",
        "reason": "because | of <this>",
    }


def entry(name, judged, **more):
    return {
        "name": name,
        "status": "ok",
        "error": None,
        "reused": False,
        "steps": [{"quantize": {"method": "gptq", "bits": 4}}],
        "bytes_on_disk": 9_000_000,
        "bits_per_weight": 3.2,
        "compression_ratio": 10.1,
        "kernel": "dequantized",
        "metrics": [
            row("cosine_mean", 0.96, 0.95, 0.97),
            row("human_spearman_lee", 0.51, 0.4, 0.6, 0.5),
            row("rss_peak_bytes", 6e8, None, None, 5e8, (5e8, 5.1e8)),
            row("load_seconds", 0.21, 0.2, 0.22, 0.2, (0.15, 0.25)),
        ],
        "gates": judged,
        "claims": [],
        "verdict": gates.overall([each["verdict"] for each in judged]),
        "grade": "B",
        "layers": [{"name": "layer.0", "bits": 4, "error": 0.1, "note": ""}],
    } | more


BROKEN = {
    "notebook": "quantize.ipynb",
    "cell": 7,
    "message": "ValueError: <img src=x> & \x1b[31m\x00 ]]>",
}


def run(*candidates, release):
    rows = [entry("baseline", [], steps=[], kernel="real"), *candidates]
    return {
        "schema": 1,
        "experiment": "small",
        "verdict": gates.run_verdict(rows, release),
        "release": release,
        "criteria": ["encoder"],
        "model": {
            "id": "minilm",
            "kind": "encoder",
            "parameters": 22_713_216,
            "bytes": 90_868_376,
            "on_grid": {},
        },
        "settings": {
            f"{section}.texts": {"value": "news", "from": "default"}
            for section in ("calibration", "evaluation")
        },
        "candidates": rows,
        "manifest": {
            "run": "20260101T000000Z-abc",
            "kerf": "0",
            "python": "3.11",
            "packages": {"torch": "2"},
            "seed": 0,
            "cpu": {"model": "A | processor", "flags": ["avx2"], "threads": 2},
            "data": {"weights": "00"},
            "started": "2026-01-01T00:00:00.000000+00:00",
            "seconds": 12.0,
        },
    }
