"""The baseline's answers in a file, a stretch of tokens at a time, so that memory does not grow with the text.

A record a token: the most probable next tokens (`ids`), their log-probabilities (`logp`), and that of the
token which really came (`target`), as `kerf.evaluate.likelihood.keep` gives them.
"""

import json
from pathlib import Path

import numpy as np

FILE, ABOUT = "kept.bin", "kept.json"


class BaselineLogits:
    """Records of all scored tokens, in the order of the text; written in any order."""

    def __init__(self, folder: Path, top: int | None = None) -> None:
        """top: how many tokens a record has, to begin a new file; None: read what is there."""
        self.path = folder / FILE
        if top is not None:
            (folder / ABOUT).write_text(json.dumps({"top": top}))
            self.path.touch()
        self.top = json.loads((folder / ABOUT).read_text())["top"]
        self.record = np.dtype(
            [("ids", "<i4", (self.top,)), ("logp", "<f4", (self.top,)), ("target", "<f4")]
        )

    def write(self, start: int, kept: dict) -> None:
        """Write records from number `start` on; kept: tensors ids and logp (tokens, top), target (tokens,)."""
        records = np.empty(len(kept["target"]), self.record)
        for name, value in kept.items():
            records[name] = value.numpy()
        with self.path.open("r+b") as file:
            file.seek(start * self.record.itemsize)
            records.tofile(file)

    def read(self, start: int, count: int) -> dict:
        """Tensors of `count` records from number `start` on."""
        import torch

        records = np.fromfile(self.path, self.record, count, offset=start * self.record.itemsize)
        return {
            name: torch.from_numpy(np.ascontiguousarray(records[name]))
            for name in self.record.names
        }
