"""Encoders and rerankers on a real kernel: what a service calls in the place of a SentenceTransformer or CrossEncoder.

Texts are tokenized together, sorted by length and padded to a multiple of 8 tokens, so that batches are even and
kernels see few shapes; a batch of long texts runs in halves, quarters and so on. Any thread may call.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kerf.backends import backend
from kerf.backends import tokens as tokenizing
from kerf.backends.tokens import padded as padded
from kerf.core.cache import threads
from kerf.core.errors import refuse
from kerf.core.finite import check_finite

MOST = 2048  # tokens that run at once: more of them hold more memory, and take no less time


class _Served:
    """A tokenizer and a kernel, from texts or pairs of texts to rows of numbers."""

    def __init__(self, folder: Path, run: Callable[..., np.ndarray], card: dict) -> None:
        """run: input_ids, attention_mask and token_type_ids, int64 (texts, tokens) each, to float32 (texts, features)."""
        told = tokenizing.settings_of(folder, card)
        self.run, self._tokenizer = run, tokenizing.read(folder, told)
        self._pad, self.max_seq_length = told["pad"], told["max_length"]

    def _rows(self, texts: Sequence, batch_size: int) -> np.ndarray:
        """(texts, features) in the order of the texts, which may be none. Raises ValueError for a batch_size below 1, and for
        an answer that is NaN or infinite, with its text."""
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size!r}: a whole number from 1")
        tokens = self._tokenizer.encode_batch_fast(list(texts))
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]), reverse=True)
        found = None if order else self._batch(self._tokenizer.encode_batch_fast([""]))[:0]
        for places in _pieces(order, tokens, batch_size):
            rows = self._batch([tokens[place] for place in places])
            found = np.empty((len(tokens), rows.shape[1]), np.float32) if found is None else found
            found[places] = rows
        check_finite(found, texts)
        return found

    def _batch(self, tokens: list) -> np.ndarray:
        ids, mask = padded([each.ids for each in tokens], self._pad, self.max_seq_length)
        types, _ = padded([each.type_ids for each in tokens], 0, self.max_seq_length)
        return self.run(input_ids=ids, attention_mask=mask, token_type_ids=types)


def _pieces(order: list[int], tokens: list, batch_size: int) -> Iterator[list[int]]:
    """Places of the texts that run at once, the longest first: batch_size of them, or a half, a quarter, ... if they are long."""
    start = 0
    while start < len(order):
        size = batch_size
        while size > 1 and size * len(tokens[order[start]]) > MOST:
            size = (size + 1) // 2
        yield order[start : start + size]
        start += size


class Encoder(_Served):
    """`encode` as SentenceTransformer has it, for texts in and a float32 array out."""

    def encode(
        self,
        sentences: str | list[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = False,
    ) -> np.ndarray:
        """Embeddings (texts, features) in the order of the texts; (features,) for one text.

        Longer texts than max_seq_length tokens are cut; no bar is ever shown. Raises TypeError for what is not text and
        for options of SentenceTransformer.encode that are not here, ValueError for a batch_size below 1 and for tensors.
        """
        if isinstance(sentences, str):
            return self.encode(
                [sentences], batch_size, show_progress_bar, convert_to_numpy, normalize_embeddings
            )[0]
        _no_tensors(convert_to_numpy)
        _check_texts("sentences", sentences)
        found = self._rows(sentences, batch_size)
        return (
            found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)
            if normalize_embeddings
            else found
        )

    def get_sentence_embedding_dimension(self) -> int:
        """Features of an embedding."""
        return self._rows([], 1).shape[1]


class Reranker(_Served):
    """`predict` and `rank` as CrossEncoder has them, for pairs of texts in and float32 scores out."""

    def predict(
        self,
        inputs: Sequence,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
    ) -> np.ndarray:
        """Scores (pairs,) of (query, passage) pairs, in their order; one number for one pair.

        Of a pair longer than max_seq_length tokens the longer text is cut. Raises TypeError for what is no pair of texts and for
        options of CrossEncoder.predict that are not here, ValueError for a batch_size below 1 and for tensors.
        """
        _no_tensors(convert_to_numpy)
        if len(inputs) == 2 and all(isinstance(text, str) for text in inputs):
            return self.predict([inputs], batch_size=batch_size)[0]
        for pair in inputs:
            if isinstance(pair, str) or len(pair) != 2:
                raise TypeError(f"inputs: pairs of a query and a passage, not {pair!r}")
            _check_texts("inputs", pair)
        return self._rows([tuple(pair) for pair in inputs], batch_size)[:, 0]

    def rank(
        self,
        query: str,
        documents: list[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> list[dict]:
        """The `top_k` documents (None: all) by their score, the best first: corpus_id, score and, where asked for, text."""
        scores = self.predict([(query, document) for document in documents], batch_size=batch_size)
        rows = [{"corpus_id": number, "score": float(score)} for number, score in enumerate(scores)]
        if return_documents:
            rows = [
                {**row, "text": document} for row, document in zip(rows, documents, strict=True)
            ]
        return sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k]


def _no_tensors(convert_to_numpy: bool) -> None:
    if not convert_to_numpy:
        raise ValueError(
            f"convert_to_numpy = {convert_to_numpy!r}: true, since there is no torch here"
        )


def _check_texts(name: str, texts: Sequence) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name}: texts, not {type(text).__name__}")


def check(model: str, folder: Path) -> None:
    """Refuse a model that puts a prompt before its texts, which an Encoder would not do."""
    path = folder / "config_sentence_transformers.json"
    if path.is_file() and (value := json.loads(path.read_text()).get("default_prompt_name")):
        raise refuse(
            "model",
            model,
            f"a model without default_prompt_name for a real kernel; {path.name} says {value!r}",
        )


def opened(folder: Path, card: dict) -> Encoder | Reranker:
    """The encoder or reranker of a candidate's directory, whose manifest was verified."""
    serving = {"encoder": Encoder, "reranker": Reranker}[card["kind"]]
    return serving(folder, backend(card["backend"]).run(folder, card, threads()), card)
