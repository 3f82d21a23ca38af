"""A candidate's directory and its seal: a card that vouches for every file.

`card.json` says what the candidate was made of and holds the sha256 of every file beside it, itself included,
so a truncated or edited file is refused by name.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from kerf.core import digests
from kerf.core.atomic import write_json
from kerf.core.cache import digest
from kerf.core.errors import InputError
from kerf.models import model_files
from kerf.models.model_files import CARD, HEAVY
from kerf.tensors.parquet import READS, SCHEMA, WEIGHTS, write_weights


def copy_small_files(model_folder: Path, folder: Path) -> None:
    """Configuration, tokenizer, templates and licences of a model, and the heads of sentence-transformers."""
    for path in (*model_files.small(model_folder), *model_files.heads(model_folder)):
        target = folder / path.relative_to(model_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def write_candidate(
    folder: Path,
    model_folder: Path,
    tensors: dict | Iterable,
    card: dict,
    config: dict | None = None,
) -> None:
    """Write a candidate's directory: the model's own small files, the packed weights and the card.

    config: what changes in its config.json, of a model whose shapes did.
    """
    copy_small_files(model_folder, folder)
    if config:
        path = model_files.module_folders(folder)[0] / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}, indent=2))
    write_weights(folder / WEIGHTS, tensors)
    write_manifest(folder, card)


def write_manifest(folder: Path, card: dict) -> None:
    """Write the card of a directory whose files are all there."""
    (folder / CARD).unlink(missing_ok=True)  # of an attempt before this one
    card = {"schema": SCHEMA, **card, "files": digests.digests(folder)}
    write_json(folder / CARD, {**card, "sha256": digest(card)})


def verify(folder: Path) -> dict:
    """The card of a candidate whose files are all as they were written; InputError names the first that is not."""
    try:
        card = digests.read_json(folder / CARD)
        own, files, schema = card.pop("sha256"), dict(card["files"]), card["schema"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        raise InputError(f"{folder / CARD}: is missing or no card of a candidate") from None
    if own != digest(card):
        raise InputError(f"{folder / CARD}: was edited after it was written (sha256 differs)")
    if schema not in READS:
        raise InputError(f"{folder / CARD}: has schema {schema}; this Kerf reads {SCHEMA}")
    for name, expected in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{folder / CARD}: names {name!r}, which lies outside the candidate")
        if wrong := digests.differing(folder / name, expected):
            raise InputError(f"{folder / name}: {wrong}")
    return card


def needs_torch(folder: str | Path) -> bool:
    """Whether a candidate is opened with torch and sentence-transformers, which most real kernels do without; nothing is verified."""
    try:
        return digests.read_json(Path(folder, CARD)).get("backend", "torch") == "torch"
    except (OSError, ValueError, AttributeError):
        return True  # what opens it names the damage


def size(folder: Path) -> dict[str, int]:
    """bytes_on_disk of the weight files, other_bytes of the rest."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "meta.json"]
    weights = [p for p in files if p.suffix in HEAVY]
    total = sum(path.stat().st_size for path in files)
    weight_bytes = sum(path.stat().st_size for path in weights)
    return {"bytes_on_disk": weight_bytes, "other_bytes": total - weight_bytes}
