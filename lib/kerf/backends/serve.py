"""An encoder on a real kernel: what a service calls in the place of a SentenceTransformer, without torch.

Texts are tokenized together, sorted by length and padded to a multiple of STEP tokens, so that batches are even and
kernels see few shapes. Any thread may call.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kerf.errors import refuse

STEP = 8  # tokens


class Encoder:
    """`encode` as SentenceTransformer has it, for texts in and a float32 array out."""

    def __init__(self, folder: Path, run: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """run: token numbers and mask, int64 (texts, tokens) each, to embeddings (texts, features)."""
        from tokenizers import Tokenizer

        self._run = run
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self.max_seq_length = _longest(folder)
        self._tokenizer.enable_truncation(self.max_seq_length)

    def encode(
        self, sentences: str | list[str], batch_size: int = 32, show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True, normalize_embeddings: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Embeddings (texts, features) in the order of the texts; (features,) for one text.

        Longer texts than max_seq_length tokens are cut; no bar is ever shown. Raises TypeError for what is not text and
        for options of SentenceTransformer.encode that are not here, ValueError for a batch_size below 1 and for tensors.
        """
        if isinstance(sentences, str):
            return self.encode([sentences], batch_size, show_progress_bar, convert_to_numpy, normalize_embeddings)[0]
        if not convert_to_numpy:
            raise ValueError(f"convert_to_numpy = {convert_to_numpy!r}: true, since there is no torch here")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size!r}: a whole number from 1")
        for text in sentences:
            if not isinstance(text, str):
                raise TypeError(f"sentences: texts, not {type(text).__name__}")
        tokens = [each.ids for each in self._tokenizer.encode_batch_fast(list(sentences))]
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]), reverse=True)
        found: np.ndarray | None = None
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            rows = self._run(*padded([tokens[place] for place in places]))
            found = np.empty((len(tokens), rows.shape[1]), np.float32) if found is None else found
            found[places] = rows
        if found is None:
            return np.empty((0, self.get_sentence_embedding_dimension()), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12) if normalize_embeddings else found

    def get_sentence_embedding_dimension(self) -> int:
        """Features of an embedding."""
        return self._run(*padded([self._tokenizer.encode("").ids])).shape[1]


def check(model: str, folder: Path) -> None:
    """Refuse a model whose texts are changed before they are tokenized, which an Encoder would not do."""
    if not (folder / "tokenizer.json").is_file():
        raise refuse("model", model, "a model with tokenizer.json for a real kernel")
    for name, key in (("config_sentence_transformers.json", "default_prompt_name"), ("sentence_bert_config.json", "do_lower_case")):
        if value := _read(folder / name).get(key):
            raise refuse("model", model, f"a model without {key} for a real kernel; {name} says {value!r}")


def padded(tokens: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers and mask, int64 (texts, tokens), the length a multiple of STEP."""
    length = -(-max(map(len, tokens)) // STEP) * STEP
    ids, mask = np.zeros((2, len(tokens), length), np.int64)
    for row, each in enumerate(tokens):
        ids[row, : len(each)] = each
        mask[row, : len(each)] = 1
    return ids, mask


def _longest(folder: Path) -> int:
    """Tokens that the model takes: what sentence-transformers was told, at most as many as there are positions."""
    positions = _read(folder / "config.json").get("max_position_embeddings", 512)
    return min(positions, _read(folder / "sentence_bert_config.json").get("max_seq_length") or positions)


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}
