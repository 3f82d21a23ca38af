"""Encoders and rerankers on a real kernel, with the methods of SentenceTransformer and CrossEncoder that services call.

Texts are tokenized together and sorted by length, so that batches are even; a batch of long texts runs in halves, quarters and
so on. Any thread may call. `embedder` and `reranker` open what two environment variables select: USE_QUANTIZATION=true|false
turns compressed candidates on, QUANTIZATION_CONFIG=int8|int4|none names the candidate.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from kerf.backends import backend, tokens
from kerf.backends.protocol import Kernel
from kerf.core.cache import threads
from kerf.core.errors import refuse
from kerf.core.finite import check_finite
from kerf.core.paths import data_folder
from kerf.models import families, manifest, registry

MAX_TOKENS = 2048  # that run at once: more of them take more memory and no less time
ACCEPTED = {"use_quantization": "true or false", "quantization_config": "int8, int4 or none"}


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
        ids = [encoding.ids for encoding in encoded]
        types = [encoding.type_ids for encoding in encoded]
        return self.run(**tokens.batch(ids, self._pad, self.max_seq_length, types))


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
    """`encode` of SentenceTransformer, from texts to a float32 array."""

    def encode(
        self,
        sentences: str | list[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = False,
    ) -> np.ndarray:
        """Embeddings (texts, features) in the order of the texts; (features,) for one text.

        Texts longer than max_seq_length tokens are truncated; there is no progress bar. Raises TypeError for what is not text
        and for other options of SentenceTransformer.encode, ValueError for a batch_size below 1 and for tensors.
        """
        texts = [sentences] if isinstance(sentences, str) else sentences
        _check_texts("sentences", texts)
        rows = self._rows(texts, batch_size, convert_to_numpy)
        if normalize_embeddings:
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
        return rows[0] if isinstance(sentences, str) else rows

    def get_sentence_embedding_dimension(self) -> int:
        """Features of an embedding."""
        return self._rows([], 1).shape[1]


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


class Switch(BaseSettings):
    """The two environment variables."""

    use_quantization: bool = False
    quantization_config: Literal["int8", "int4", "none"] = "int8"


def embedder(model: str = "minilm", candidates: str | Path | None = None) -> Any:
    """The encoder that the environment selects: a SentenceTransformer, or a candidate with the same `encode`.

    model: a name of `kerf list models`, a hub id or a local directory. candidates: the directory with the candidates int8 and
    int4, by default that of the experiment `minilm-int8`. Raises InputError for a wrong value of a variable, a missing candidate,
    and a candidate of another model.
    """
    return _selected(model, candidates, "encoder", "embedder", "minilm-int8")


def reranker(model: str = "reranker", candidates: str | Path | None = None) -> Any:
    """The reranker that the environment selects, as `embedder`: a CrossEncoder, or a candidate with its `predict` and `rank`."""
    return _selected(model, candidates, "reranker", "reranker", "reranker-int8")


def _selected(
    model: str, candidates: str | Path | None, kind: str, call: str, experiment: str
) -> Any:
    try:
        switch = Switch()
    except ValidationError as error:
        first = error.errors()[0]
        variable = str(first["loc"][0])
        raise refuse(variable.upper(), first["input"], ACCEPTED[variable]) from None
    name = switch.quantization_config
    if not switch.use_quantization or name == "none":
        registry.check_family(model, f"kerf.{call}", kind)
        return registry.open_model(model)
    folder = Path(candidates or data_folder() / "runs" / experiment) / name
    if not (folder / manifest.CARD).is_file():
        made = f"`kerf run {experiment}` makes those of {experiment.partition('-')[0]}"
        raise refuse("QUANTIZATION_CONFIG", name, f"a candidate in {folder.parent}; {made}")
    card = manifest.verify(folder)
    digest = card.get("origin")
    if card["kind"] != kind:
        expected, actual = (families.FAMILIES[name].CALLED for name in (kind, card["kind"]))
    elif model == card["model"] or registry.weights_digest(registry.resolve(model)) == digest:
        return registry.load(folder)
    else:
        expected, actual = model, card["model"]
    accepted = f"candidates of {expected}; these are of {actual}"
    raise refuse("candidates", str(folder.parent), accepted)
