"""Static embeddings, as of model2vec: a table with a row for each token, whose mean over a text is the text's embedding. An encoder
of sentence-transformers without a transformer; its only layer is the table."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kerf.core.errors import printable, refuse
from kerf.models.families import detection
from kerf.models.families.opening import from_folder
from kerf.models.model_files import read_or_empty


def is_static(opened: Any) -> bool:
    """Whether an opened encoder is a table of static embeddings."""
    return type(opened[0]).__name__ == detection.STATIC


def open_folder(folder: Path, device: str, **options: Any) -> Any:
    """SentenceTransformer in float32, also of a directory of model2vec's own. Raises InputError for one that does not open."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    load = StaticEmbedding.load_torch_weights

    def in_float(
        *args: Any, **keys: Any
    ) -> dict:  # model2vec stores bytes; the length of an embedding says nothing
        tables = load(*args, **keys).items()
        return {name: table if name == "mapping" else table.float() for name, table in tables}

    with patch.object(StaticEmbedding, "load_torch_weights", in_float):
        if detection.modules(folder):
            return from_folder("SentenceTransformer", folder, device=device, **options).eval()
        try:
            table = StaticEmbedding.load(str(folder), local_files_only=True)
        except Exception as error:  # the libraries raise a dozen kinds
            cause = printable(f"{type(error).__name__}: {error}", 160)
            raise refuse("model", str(folder), f"a table that model2vec wrote ({cause})") from error
    ends = [Normalize()] if read_or_empty(folder / "config.json", dict).get("normalize") else []
    return SentenceTransformer(modules=[table, *ends], device=device, **options).eval()


def loading(weights: dict) -> AbstractContextManager:
    """Within the block, sentence-transformers opens a table of `weights`, whatever the files hold."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    return patch.object(StaticEmbedding, "load_torch_weights", lambda *_, **__: weights)
