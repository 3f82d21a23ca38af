"""MiniLM on kernels that compute in bytes: texts a second against SentenceTransformer in float, and what each loses.

All encode the same real sentences in the same batches, sorted by length, in one process, in turn; the order changes
from round to round, the ratio is paired within a round. NNCF quantizes the same graph from the same calibration text
(`make peers`), and its result runs through the same encoder. What sorting brings, and what tokenizing and OpenVINO
bring, without any byte, stands beside them: SentenceTransformer with batches in the order of the text, and the graph in float.

    python benchmarks/int8.py [--threads 2] [--rounds 11] [--samples 512] [--batch 32] [--only int8 "int8 weights"] [--environments DIR]
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

MODEL, SENTENCES = "minilm", 400
CHAINS = {
    "int8": {"method": "static"},
    "int8, rest in bfloat16": {"method": "static", "compute_dtype": "bfloat16"},
    "int8, careful": {"method": "static", "compute_dtype": "bfloat16", "min_cosine": 0.9993},
    "int8, torch": {"method": "static", "backend": "torch"},
    "int8, onnxruntime": {"method": "static", "backend": "onnxruntime"},
    "dynamic int8, torch": {"method": "dynamic"},
    "dynamic int8, onnxruntime": {"method": "dynamic", "backend": "onnxruntime"},
    "int8 weights": {"method": "weight_only"},
    "int8 weights, onnxruntime": {"method": "weight_only", "backend": "onnxruntime"},
    "bfloat16": {"method": "bfloat16"},
    "bfloat16, torch": {"method": "bfloat16", "backend": "torch"},
}


def peer(python: Path, graph: Path, batches: list[dict], folder: Path, preset: str) -> None:
    """Have NNCF quantize the graph into `folder`."""
    request = folder / "request.json"
    rows = [
        {name: batch[name].tolist() for name in ("input_ids", "attention_mask")}
        for batch in batches
    ]
    request.write_text(json.dumps({"graph": str(graph), "batches": rows, "preset": preset}))
    script = Path(__file__).parent / "peers" / "graph_with_nncf.py"
    done = subprocess.run(
        [python, script, request, folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"NNCF ended with {done.returncode}:\n{done.stderr[-2000:]}")


class Unsorted:
    """A model whose batches are in the order of the text."""

    def __init__(self, opened):
        self.opened = opened

    def encode(self, sentences, batch_size, **options):
        """Embeddings (texts, features)."""
        import numpy as np

        starts = range(0, len(sentences), batch_size)
        return np.concatenate(
            [
                self.opened.encode(
                    sentences[start : start + batch_size], batch_size=batch_size, **options
                )
                for start in starts
            ]
        )


def contestants(
    calibration, environments: Path, scratch: Path, threads: int, only: list[str]
) -> dict[str, object]:
    """What can `encode` on so many threads, by name; the first is what all are held against."""
    import kerf
    from kerf.backends import openvino_, serve
    from kerf.models import registry
    from kerf.models.families import encoder
    from kerf.pipeline import build

    folders = {
        name: build(MODEL, [{"quantize": step}], calibration)
        for name, step in CHAINS.items()
        if name in only
    }  # on all threads
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read whenever a model is opened
    baseline = registry.open_model(MODEL)
    (scratch / "float").mkdir()
    openvino_.save(openvino_.convert(baseline), scratch / "float", half=False)

    def runs(folder, precision):
        return serve.Encoder(
            registry.resolve(MODEL),
            openvino_.run(folder, {"settings": {"INFERENCE_PRECISION_HINT": precision}}, threads),
            {},
        )

    found = {
        "SentenceTransformer, float": baseline,
        "SentenceTransformer, unsorted": Unsorted(baseline),
        "OpenVINO, float": runs(scratch / "float", "f32"),
    }
    found |= {f"Kerf, {name}": kerf.load(folder) for name, folder in folders.items()}
    python = environments / "nncf" / "bin" / "python"
    for preset in ("mixed", "performance") if python.exists() else ():
        folder = scratch / f"nncf-{preset}"
        folder.mkdir()
        peer(
            python,
            scratch / "float" / openvino_.MODEL,
            encoder.batches(baseline, calibration),
            folder,
            preset,
        )
        found |= {
            f"NNCF, {preset}, {precision}": runs(folder, precision) for precision in ("f32", "bf16")
        }
    return found


def main() -> None:
    """Print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--samples", type=int, default=512, help="calibration sentences of news")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--only", nargs="+", choices=CHAINS, default=list(CHAINS), help="what of Kerf is measured"
    )
    parser.add_argument(
        "--environments", type=Path, default=Path(__file__).resolve().parents[1] / ".venv-peers"
    )
    asked = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(asked.threads)  # read when the first tokenizer starts

    import numpy as np

    from kerf.config import Calibration
    from kerf.data import corpora
    from kerf.evaluate import stats as st

    with tempfile.TemporaryDirectory() as scratch:
        found = contestants(
            Calibration(samples=asked.samples),
            asked.environments,
            Path(scratch),
            asked.threads,
            asked.only,
        )
        sentences, documents = corpora.evaluation_sentences("news", SENTENCES)
        embeddings, seconds = {}, np.zeros((asked.rounds + 1, len(found)))
        for number in range(asked.rounds + 1):  # the first does not count
            for place in np.roll(np.arange(len(found)), number):
                clock = time.perf_counter()
                rows = list(found.values())[place].encode(
                    sentences, batch_size=asked.batch, show_progress_bar=False
                )
                seconds[number, place] = time.perf_counter() - clock
                embeddings[place] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        faster = seconds[1:, :1] / seconds[1:]
        for place, name in enumerate(found):
            cosine = (embeddings[place] * embeddings[0]).sum(1).astype(np.float64)
            mean, low, high = st.mean_interval(cosine, np.array(documents))
            ratio, least, most = st.median_interval(faster[:, place])
            print(
                f"{name:32} {ratio:5.2f} times as fast ({least:.2f} to {most:.2f}), cosine mean {mean:.5f} ({low:.5f} to {high:.5f}), "
                f"1 % {np.quantile(cosine, 0.01):.4f}, lowest {cosine.min():.4f}; {SENTENCES / np.median(seconds[1:, place]):.0f} texts a second",
                flush=True,
            )


if __name__ == "__main__":
    main()
