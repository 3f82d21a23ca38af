"""Models: from a name (of MODELS, a local directory or a hub id) to a directory, what is in it, and how it is opened: from
safetensors alone, and without running code that a model brings along."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kerf.config.backends import BACKENDS
from kerf.core.cache import artifact, digest, meta
from kerf.core.device import current
from kerf.core.digests import sha256
from kerf.core.errors import nearest, refuse
from kerf.core.paths import data_folder
from kerf.core.registry import resolved
from kerf.core.user_files import given_path
from kerf.data import downloads
from kerf.models import architecture, conventions, families, manifest, model_files
from kerf.models.coverage import coverage
from kerf.models.families.opening import converted
from kerf.models.linearized import linearized, restored
from kerf.models.safety import check_folder
from kerf.tensors import parquet


@dataclass(frozen=True)
class Preset:
    """An embedded model and the parameters that suit it (they yield to the experiment's)."""

    source: downloads.Source
    calibration: dict = field(default_factory=dict)
    made: Callable[[Path], Path] | str = lambda folder: folder  # download to model's directory
    about: str = ""  # what the model is, where it is not the source's


TRAINED = "kerf.training.train_cross_encoder:trained"  # which imports this module
RERANKER = "a cross-encoder that Kerf trained itself, from all-MiniLM-L6-v2 on inverse-cloze pairs of the bundled text"
MODELS = {
    "minilm": Preset(downloads.MINILM, {"max_length": 128}),
    "smollm2": Preset(downloads.SMOLLM2, {"samples": 32, "max_length": 256}, converted),
    "reranker": Preset(downloads.MINILM, {"max_length": 128}, TRAINED, RERANKER),
}
UNKNOWN_TEXT = "\u2603 qqzx"  # in no vocabulary


def resolve(model: str) -> Path:
    """Directory of a model: embedded name, local directory or hub id, with what `kerf.models.conventions` reads behind a question
    mark. Raises InputError when there is none, when a hub cannot be reached, or when the files are not safe."""
    name, said = conventions.split(model)
    if said:
        folder = resolve(name)
        return conventions.applied(name, folder, weights_digest(folder), said)
    if model in MODELS:
        return resolved(MODELS[model].made)(downloads.fetch(MODELS[model].source))
    local = given_path(model)
    if local and local.is_dir():
        folder = local.resolve()
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        folder = _download(model)
    else:
        accepted = f"a directory, a hub id or a known name: {nearest(model, MODELS)}"
        raise refuse("model", model, accepted)
    check_folder(model, folder)
    return folder


def _download(hub_id: str) -> Path:
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # one more request to wait for
    from huggingface_hub import snapshot_download

    downloads.bound_hub()
    options: dict[str, Any] = {
        "cache_dir": data_folder() / "hub",
        "etag_timeout": downloads.SECONDS,
    }
    options |= {"allow_patterns": model_files.WANTED, "ignore_patterns": model_files.UNWANTED}
    try:
        return Path(snapshot_download(hub_id, **options))
    except Exception as error:  # the client raises a dozen kinds: offline, DNS, proxy, gated, ...
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        accepted = f"the hub could not provide it ({cause}); a local directory works"
        raise refuse("model", hub_id, accepted) from None


def weights_digest(folder: Path) -> str:
    """sha256 over the files that make the model what it is."""
    paths = model_files.of(folder)
    return digest([(path.relative_to(folder).as_posix(), sha256(path)) for path in paths])


def describe(model: str) -> dict[str, Any]:
    """What is in a model, computed once: kind, conventions, parameters, bytes, linears, embeddings, coverage, on_grid, origin,
    ignored_code.

    `linears` and `embeddings` map names to [rows, columns]; `coverage` is that of changing all `linears`; `on_grid` maps layers
    whose weights lie on a low-bit grid already to its bits and group_size; `ignored_code` names code that is not run. Raises
    InputError for NaN or infinity, and for what does not open.
    """
    folder = resolve(model)
    key = {"model": model, "weights": weights_digest(folder)}
    described = meta(artifact("describe", key, lambda _: _described(model, folder)))["result"]
    ignored = [] if model in MODELS else check_folder(model, folder)
    return {**described, "origin": origin(model), "ignored_code": ignored}


def _described(model: str, folder: Path) -> dict[str, Any]:
    from kerf.models.grid_detection import grid_of

    family = families.of(folder)
    opened = family.open_folder(folder)
    for name, tensor in opened.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise refuse("model", model, f"finite weights; {name} holds NaN or infinity")
    net = network(opened)
    try:
        family.reader(opened)(UNKNOWN_TEXT)
    except Exception as error:  # the library raises Exception itself
        accepted = f"a tokenizer that reads any text; on {UNKNOWN_TEXT!r} it fails ({error})"
        raise refuse("model", model, accepted) from error
    linears, embeddings = architecture.linears(net), architecture.embeddings(net)
    grids = {name: grid_of(m.weight.data) for name, m in {**embeddings, **linears}.items()}
    return {
        "id": model,
        "kind": family.NAME,
        "conventions": family.conventions(opened),
        "parameters": sum(p.numel() for p in opened.parameters()),
        "bytes": sum(path.stat().st_size for path in model_files.weights(folder)),
        "other_bytes": sum(path.stat().st_size for path in model_files.small(folder)),
        "linears": _shapes(linears),
        "embeddings": _shapes(embeddings),
        "coverage": coverage(opened, net, dict.fromkeys(linears, 32)),
        "on_grid": {n: {"bits": g[0], "group_size": g[1]} for n, g in grids.items() if g},
    }


def _shapes(layers: dict[str, Any]) -> dict[str, list[int]]:
    return {name: list(layer.weight.shape) for name, layer in layers.items()}


def preset_of(model: str) -> Preset | None:
    """The preset of an embedded model, whatever is said of it behind its name."""
    return MODELS.get(conventions.split(model)[0])


def origin(model: str) -> str:
    """What an embedded model is and where it comes from; empty for others."""
    preset = preset_of(model)
    return (preset.about or preset.source.origin) if preset else ""


def open_model(name: str, device: str = "") -> Any:
    """The baseline in float32 on `device` (empty: `kerf.core.device.current()`): a SentenceTransformer, a CrossEncoder or a
    causal LM of transformers. Raises InputError (see `resolve`)."""
    folder = resolve(name)
    return families.of(folder).open_folder(folder, device or current())


def load(path: str | os.PathLike, device: str = "cpu") -> Any:
    """A compressed candidate as what its baseline opens as; its weights equal the compressor's output exactly.

    One that runs on a real kernel is a `kerf.backends.serve.Encoder` or `Reranker` with the same methods; torch is imported only
    where the kernels are its own. Raises InputError, naming the file, when one is missing, truncated or edited.
    """
    folder = Path(path)
    if folder.is_dir():
        check_folder(str(path), folder, "path", has_weights=False)
    card = manifest.verify(folder)
    if "backend" in card:
        return resolved(BACKENDS.named(card["backend"], "backend").opener)(folder, card)
    weights = restored(parquet.read_weights(folder / parquet.WEIGHTS), card.get("transposed", ()))
    return families.FAMILIES[card["kind"]].with_weights(folder, card["class"], weights, device)


def open_source(model: str, source: str | os.PathLike | None, device: str = "") -> Any:
    """The candidate in directory `source`, or the baseline where it is empty; device: see `open_model`."""
    return load(source, device or current()) if source else open_model(model, device)


def reference_network(model: str, source: str | os.PathLike | None, start: Any) -> Any:
    """The network that per-layer error is computed against: the baseline, or `start`, opened from `source`, if shapes changed."""
    if not source:
        return start
    baseline = network(open_model(model))
    shapes = _shapes(architecture.linears(baseline))
    return baseline if shapes == _shapes(architecture.linears(start)) else start


def network(opened: Any) -> Any:
    """The transformer inside, whose layers are compressed: each is a torch.nn.Linear (`kerf.models.linearized`)."""
    return linearized(families.of_opened(opened).network(opened))


def check_family(model: str, what: str, *known: str) -> None:
    """Refuse a model whose kind is not among the `known`, which is all that `what` can do."""
    family = families.of(resolve(model))
    if family.NAME not in known:
        accepted = " or ".join(families.FAMILIES[name].CALLED for name in known)
        noun = family.CALLED.partition(" ")[2]
        raise refuse("model", model, f"{accepted}; {what} does not know {noun}s yet")
