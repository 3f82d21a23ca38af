"""A candidate's directory and its manifest `card.json`, which states what the candidate was made of, and holds the sha256 of every
file beside it and of itself."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kerf.core import digests
from kerf.core.atomic import write_json
from kerf.core.cache import digest
from kerf.core.errors import InputError
from kerf.models import model_files
from kerf.models.model_files import CARD, HEAVY
from kerf.tensors.parquet import READS, SCHEMA, WEIGHTS, write_weights

Tensors = dict[str, Any] | Iterable[tuple[str, Any]]  # by name


def copy_small_files(model_folder: Path, folder: Path) -> None:
    """Copy configuration, tokenizer, templates and licences of a model, and the heads of sentence-transformers."""
    for path in (*model_files.small(model_folder), *model_files.heads(model_folder)):
        target = folder / path.relative_to(model_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def write_candidate(
    folder: Path, model_folder: Path, tensors: Tensors, card: dict, config: dict | None = None
) -> None:
    """Write a candidate's directory: the model's own small files, the packed weights and the manifest.

    tensors: Quantized or float, on any device. config: changed keys of config.json, of a model whose shapes changed.
    """
    copy_small_files(model_folder, folder)
    if config:
        path = model_files.module_folders(folder)[0] / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}, indent=2))
    write_weights(folder / WEIGHTS, tensors)
    write_manifest(folder, card)


def write_manifest(folder: Path, card: dict) -> None:
    """Write the manifest of a directory whose other files are complete."""
    (folder / CARD).unlink(missing_ok=True)  # of an earlier attempt
    card = {"schema": SCHEMA, **card, "files": digests.digests(folder)}
    write_json(folder / CARD, {**card, "sha256": digest(card)})


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a candidate whose files are all as they were written. Raises InputError, naming the first that is not."""
    path = folder / CARD
    try:
        card: Any = digests.read_json(path)
        own, files, schema = card.pop("sha256"), dict(card["files"]), card["schema"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        raise InputError(f"{path}: is missing or no card of a candidate") from None
    if own != digest(card):
        raise InputError(f"{path}: was edited after it was written (sha256 differs)")
    if schema not in READS:
        raise InputError(f"{path}: has schema {schema}; this Kerf reads {SCHEMA}")
    for name, expected in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{path}: names {name!r}, which lies outside the candidate")
        if wrong := digests.file_damage(folder / name, expected):
            raise InputError(f"{folder / name}: {wrong}")
    return card


def needs_torch(folder: str | Path) -> bool:
    """Whether a candidate is opened with torch and sentence-transformers, unlike most real kernels; nothing is verified."""
    card = model_files.read_or_empty(Path(folder, CARD), dict)
    return card.get("backend", "torch") == "torch"  # opening a damaged one will name the damage


def size(folder: Path) -> dict[str, int]:
    """bytes_on_disk of the weight files, other_bytes of the rest."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "meta.json"]
    total = sum(path.stat().st_size for path in files)
    heavy = sum(path.stat().st_size for path in files if path.suffix in HEAVY)
    return {"bytes_on_disk": heavy, "other_bytes": total - heavy}
