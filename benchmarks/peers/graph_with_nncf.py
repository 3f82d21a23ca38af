"""A graph on integer kernels by NNCF: python graph_with_nncf.py REQUEST.json OUT_DIR, in its own environment.

A request names graph (an OpenVINO file in float) and batches (lists of input_ids and attention_mask). OUT_DIR gets
openvino_model.xml and .bin. The preset for transformers, with smooth quantization, is what the library advises.
"""

import json
import sys
import time
from pathlib import Path

import nncf
import numpy as np
import openvino as ov


def main() -> None:
    """Post-training quantization with the library's defaults for transformers."""
    asked, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    batches = [
        {name: np.array(rows, np.int64) for name, rows in batch.items()}
        for batch in asked["batches"]
    ]
    clock = time.perf_counter()
    found = nncf.quantize(
        ov.Core().read_model(asked["graph"]),
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset(asked["preset"]),
        subset_size=len(batches),
    )
    seconds = time.perf_counter() - clock
    ov.save_model(found, out / "openvino_model.xml", compress_to_fp16=False)
    (out / "figures.json").write_text(json.dumps({"seconds": seconds, "version": nncf.__version__}))


if __name__ == "__main__":
    main()
