"""An encoder on a real kernel: what a service calls in the place of a SentenceTransformer, without torch.

Texts are tokenized together, sorted by length and padded to a multiple of STEP tokens, so that batches are even and
kernels see few shapes. Any thread may call.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

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
        self, sentences: str | list[str], batch_size: int = 32, normalize_embeddings: bool = False, convert_to_numpy: bool = True, **_
    ) -> np.ndarray:
        """Embeddings (texts, features) in the order of the texts; (features,) for one text.

        Longer texts than max_seq_length tokens are cut. Other options of SentenceTransformer.encode are accepted and
        change nothing. Raises TypeError for what is not text, ValueError for a batch_size below 1.
        """
        if isinstance(sentences, str):
            return self.encode([sentences], batch_size, normalize_embeddings)[0]
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
    told = folder / "sentence_bert_config.json"
    positions = json.loads((folder / "config.json").read_text()).get("max_position_embeddings", 512)
    return min(positions, (json.loads(told.read_text()).get("max_seq_length") if told.is_file() else None) or positions)
