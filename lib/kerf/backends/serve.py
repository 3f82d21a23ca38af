"""Encoders and rerankers on a real kernel, with the methods of SentenceTransformer and CrossEncoder that services call.

Texts are tokenized together and sorted by length, so that batches are even; a batch of long texts runs in halves, quarters and
so on. Any thread may call.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerf.backends import backend, tokens
from kerf.backends.protocol import Kernel
from kerf.core.cache import threads
from kerf.core.finite import check_finite

MAX_TOKENS = 2048  # that run at once: more of them take more memory and no less time


class _Served:
    """A tokenizer and a kernel: from texts or pairs of texts to rows of numbers."""

    def __init__(self, folder: Path, run: Kernel, card: dict) -> None:
        settings = tokens.settings_of(folder, card)
        self.run, self._tokenizer = run, tokens.read(folder, settings)
        self._pad, self.max_seq_length = settings["pad"], settings["max_length"]

    def _rows(self, texts: Sequence, batch_size: int, to_numpy: bool = True) -> np.ndarray:
        """(texts, features) in the order of the texts. Raises ValueError for an answer that is NaN or infinite."""
        if not to_numpy:
            raise ValueError(f"convert_to_numpy = {to_numpy!r}: true, kernels return no tensors")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size!r}: a whole number from 1")
        encoded = self._tokenizer.encode_batch_fast(list(texts))
        if not encoded:
            return self._batch(self._tokenizer.encode_batch_fast([""]))[:0]
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]), reverse=True)
        pieces = _pieces(order, encoded, batch_size)
        rows = np.concatenate([self._batch([encoded[i] for i in piece]) for piece in pieces])
        rows = rows[np.argsort(order)]
        check_finite(rows, texts)
        return rows

    def _batch(self, encoded: list) -> np.ndarray:
        return self.run(**self._features(encoded))

    def _features(self, encoded: list) -> dict[str, np.ndarray]:
        ids = [encoding.ids for encoding in encoded]
        types = [encoding.type_ids for encoding in encoded]
        return tokens.batch(ids, self._pad, self.max_seq_length, types)

    def preprocess(self, inputs: list, prompt: str | None = None) -> dict[str, np.ndarray]:
        """What the kernel gets of texts or pairs, as of SentenceTransformer.preprocess: input_ids, attention_mask, token_type_ids.

        prompt: text before each of the texts.
        """
        texts = [prompt + text for text in inputs] if prompt else inputs
        return self._features(self._tokenizer.encode_batch_fast(texts))


def _pieces(order: list[int], encoded: list, batch_size: int) -> Iterator[list[int]]:
    """Indices of the texts that run at once, the longest first: batch_size of them, or a half, a quarter, ... of long ones."""
    start = 0
    while start < len(order):
        size = batch_size
        while size > 1 and size * len(encoded[order[start]]) > MAX_TOKENS:
            size = (size + 1) // 2
        yield order[start : start + size]
        start += size


class Encoder(_Served):
    """`encode` of SentenceTransformer and what goes with it, from texts to a float32 array, with the model's own conventions."""

    def __init__(self, folder: Path, run: Kernel, card: dict) -> None:
        super().__init__(folder, run, card)
        how = card.get("conventions", {})
        self.prompts = {"query": "", "document": "", **how.get("prompts", {})}
        self.default_prompt_name: str | None = how.get("default_prompt")
        self.truncate_dim: int | None = how.get("truncate_dim")
        self.similarity_fn_name: str = how.get("similarity", "cosine")

    def encode(
        self,
        sentences: str | list[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> np.ndarray:
        """Embeddings (texts, features) in the order of the texts; (features,) for one text.

        A text is read behind `prompt`, that of `prompt_name`, or the model's default prompt; more than max_seq_length tokens are
        truncated; there is no progress bar. Raises TypeError for what is not text and for other options of
        SentenceTransformer.encode, ValueError for an unknown prompt_name, a batch_size below 1, and tensors.
        """
        texts = [sentences] if isinstance(sentences, str) else sentences
        _check_texts("sentences", texts)
        name = prompt_name or self.default_prompt_name
        if prompt is None and name and name not in self.prompts:
            raise ValueError(f"prompt_name = {name!r}: one of {', '.join(self.prompts)}")
        before = (self.prompts[name] if name else "") if prompt is None else prompt
        rows = self._rows([before + text for text in texts], batch_size, convert_to_numpy)
        rows = rows[:, : truncate_dim or self.truncate_dim]
        if normalize_embeddings:
            rows = _of_length_one(rows)
        return rows[0] if isinstance(sentences, str) else rows

    def encode_query(self, sentences: str | list[str], **options: Any) -> np.ndarray:
        """`encode` of queries: behind the model's prompt for them, unless the options name another."""
        return self.encode(sentences, **self._by_default("query", options))

    def encode_document(self, sentences: str | list[str], **options: Any) -> np.ndarray:
        """`encode` of passages: behind the model's prompt for them, unless the options name another."""
        return self.encode(sentences, **self._by_default("document", options))

    def _by_default(self, name: str, options: dict) -> dict:
        given = options.get("prompt") is not None or options.get("prompt_name") is not None
        return options if given else {**options, "prompt_name": name}

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Similarities (a, b) of embeddings (a, features) and (b, features), by the model's similarity function."""
        from scipy.spatial.distance import cdist

        a, b = (np.atleast_2d(np.asarray(rows)) for rows in (embeddings1, embeddings2))
        if self.similarity_fn_name in ("cosine", "dot"):
            unit = _of_length_one if self.similarity_fn_name == "cosine" else np.asarray
            return unit(a) @ unit(b).T
        metric = {"manhattan": "cityblock"}.get(self.similarity_fn_name, self.similarity_fn_name)
        return -cdist(a, b, metric).astype(np.float32)

    def get_embedding_dimension(self) -> int:
        """Features of an embedding."""
        return self._rows([], 1)[:, : self.truncate_dim].shape[1]

    get_sentence_embedding_dimension = get_embedding_dimension


def _of_length_one(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


class Reranker(_Served):
    """`predict` and `rank` of CrossEncoder, from pairs of texts to float32 scores."""

    def predict(
        self,
        inputs: Sequence,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
    ) -> np.ndarray:
        """Scores (pairs,) of (query, passage) pairs, in their order; one number for one pair.

        In a pair longer than max_seq_length tokens the longer text is truncated. Raises TypeError for what is no pair of texts
        and for other options of CrossEncoder.predict, ValueError for a batch_size below 1 and for tensors.
        """
        single = len(inputs) == 2 and all(isinstance(text, str) for text in inputs)
        pairs = [inputs] if single else inputs
        for pair in pairs:
            if isinstance(pair, str) or len(pair) != 2:
                raise TypeError(f"inputs: pairs of a query and a passage, not {pair!r}")
            _check_texts("inputs", pair)
        scores = self._rows([tuple(pair) for pair in pairs], batch_size, convert_to_numpy)[:, 0]
        return scores[0] if single else scores

    def rank(
        self,
        query: str,
        documents: list[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]]:
        """The `top_k` documents (None: all), the best first: corpus_id, score and, with return_documents, text."""
        scores = self.predict([(query, document) for document in documents], batch_size=batch_size)
        rows = []
        for index in np.argsort(-scores, kind="stable")[:top_k].tolist():
            text = {"text": documents[index]} if return_documents else {}
            rows.append({"corpus_id": index, "score": float(scores[index]), **text})
        return rows


def _check_texts(name: str, texts: Sequence) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name}: texts, not {type(text).__name__}")


def opened(folder: Path, card: dict) -> Encoder | Reranker:
    """The encoder or reranker of a candidate's directory, whose manifest was verified."""
    run = backend(card["backend"]).run(folder, card, threads())
    return (Encoder if card["kind"] == "encoder" else Reranker)(folder, run, card)
