"""Models: from a name to a directory, what is in it, and how it is opened.

A model is a name of the list below, a local directory or a hub id. Weights are read from safetensors
alone, and no code that a model brings along is run. What depends on the kind of model stands here.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kerf.config.backends import BACKENDS
from kerf.core import timeouts
from kerf.core.cache import artifact, digest, meta
from kerf.core.device import current
from kerf.core.digests import sha256
from kerf.core.errors import nearest, refuse
from kerf.core.paths import data_folder
from kerf.core.registry import resolved
from kerf.core.user_files import given_path
from kerf.data import downloads
from kerf.models import architecture, families, gguf, model_files
from kerf.models.safety import check_files, check_folder


@dataclass(frozen=True)
class Preset:
    """An embedded model and the parameters that suit it (they yield to the experiment's).

    made: what the package's files become before they are opened; about: what the model is, where it is not the source's.
    """

    source: downloads.Source
    calibration: dict = field(default_factory=dict)
    made: Callable[[Path], Path] | str = lambda folder: folder
    about: str = ""


MODELS = {
    "minilm": Preset(downloads.MINILM, {"max_length": 128}),
    "smollm2": Preset(
        downloads.SMOLLM2,
        {"samples": 32, "max_length": 256},
        lambda folder: gguf.converted(folder / "model.gguf"),
    ),
    "reranker": Preset(
        downloads.MINILM,
        {"max_length": 128},
        "kerf.training.train_cross_encoder:trained",
        "a cross-encoder that Kerf trained itself, from all-MiniLM-L6-v2 on inverse-cloze pairs of the bundled text",
    ),
}

UNKNOWN_TEXT = "\u2603 qqzx"  # that no vocabulary holds


def resolve(model: str) -> Path:
    """Directory of a model: embedded name, local directory or hub id.

    Raises InputError when there is none, when a hub cannot be reached, or when the files are not safe.
    """
    if model in MODELS:
        return resolved(MODELS[model].made)(downloads.fetch(MODELS[model].source))
    local = given_path(model)
    if local and local.is_dir():
        return _checked(model, local.resolve())
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise refuse(
            "model", model, f"a directory, a hub id or a known name: {nearest(model, MODELS)}"
        )
    return _checked(model, _download(model))


def _checked(model: str, folder: Path) -> Path:
    check_files(model, folder)  # before anything else reads a file of it
    model_files.check_no_adapter(model, folder)
    check_folder(model, folder)
    return folder


def _download(hub_id: str) -> Path:
    """Files of a hub model without its pickles."""
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # a question more, which is waited for
    from huggingface_hub import snapshot_download

    timeouts.bound_hub()
    options = {
        "allow_patterns": model_files.WANTED,
        "ignore_patterns": model_files.UNWANTED,
        "etag_timeout": timeouts.SECONDS,
    }
    try:
        folder = snapshot_download(hub_id, cache_dir=data_folder() / "hub", **options)
    except (
        Exception
    ) as error:  # the client raises a dozen kinds: offline, DNS, proxy, missing, gated
        cause = (
            str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        )
        raise refuse(
            "model", hub_id, f"the hub could not provide it ({cause}); a local directory works"
        ) from None
    return Path(folder)


def weights_digest(folder: Path) -> str:
    """sha256 over the files that make the model what it is."""
    return digest(
        [(path.relative_to(folder).as_posix(), sha256(path)) for path in model_files.of(folder)]
    )


def describe(model: str) -> dict:
    """What is in a model, found once and kept: kind, parameters, bytes, linears, embeddings, on_grid, origin, ignored_code.

    `linears` and `embeddings` map names to [rows, columns], `on_grid` those whose weights lie on a low-bit
    grid already to its bits and group_size, `ignored_code` names code that came along and was not run. Raises InputError for a tensor that holds NaN
    or infinity, naming it, and for a directory that does not open.
    """
    folder = resolve(model)

    def make(_: Path) -> dict:
        opened = open_model(model)
        _check_finite(model, opened)
        net = network(opened)
        check_layers(model, net)
        _check_tokenizer(model, families.of(folder).reader(opened))
        return {
            "id": model,
            "kind": families.name_of(folder),
            "parameters": sum(p.numel() for p in opened.parameters()),
            "bytes": sum(path.stat().st_size for path in model_files.weights(folder)),
            "other_bytes": sum(path.stat().st_size for path in model_files.small(folder)),
            "linears": {
                name: list(layer.weight.shape) for name, layer in architecture.linears(net).items()
            },
            "embeddings": {
                name: list(layer.weight.shape)
                for name, layer in architecture.embeddings(net).items()
            },
            "on_grid": _on_grid(net),
        }

    found = meta(artifact("describe", {"model": model, "weights": weights_digest(folder)}, make))[
        "result"
    ]
    ignored = [] if model in MODELS else check_folder(model, folder)
    return {**found, "origin": origin(model), "ignored_code": ignored}


def origin(model: str) -> str:
    """What an embedded model is and where it comes from; empty for others."""
    preset = MODELS.get(model)
    return (preset.about or preset.source.origin) if preset else ""


def _on_grid(net) -> dict[str, dict]:
    """Layers whose weights lie on a low-bit grid already: bits and group_size by name."""
    from kerf.models.grid_detection import grid_of

    layers = {**architecture.embeddings(net), **architecture.linears(net)}
    found = {name: grid_of(layer.weight.data) for name, layer in layers.items()}
    return {name: {"bits": grid[0], "group_size": grid[1]} for name, grid in found.items() if grid}


def _check_finite(model: str, opened) -> None:
    for name, tensor in opened.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise refuse("model", model, f"finite weights; {name} holds NaN or infinity")


def _check_tokenizer(model: str, tokenizer) -> None:
    try:
        tokenizer(UNKNOWN_TEXT)
    except Exception as error:  # the library raises Exception itself
        raise refuse(
            "model",
            model,
            f"a tokenizer that reads any text; on {UNKNOWN_TEXT!r} it fails ({error})",
        ) from error


def check_layers(model: str, net) -> None:
    """Refuse a network whose linear layers keep their weights transposed, by the layer's name."""
    for name, module in net.named_modules():
        if type(module).__name__ == "Conv1D":
            raise refuse(
                "model", model, f"layers of torch.nn.Linear; {name} is a transposed Conv1D"
            )


def open_model(name: str, device: str = ""):
    """The baseline in float32, ready to use: a SentenceTransformer or CrossEncoder, or a causal LM of transformers.

    device: of torch; empty for `kerf.core.device.current()`. Raises InputError (see `resolve`).
    """
    folder = resolve(name)
    return families.of(folder).open_folder(folder, device or current())


def load(path: str | os.PathLike, device: str = "cpu"):
    """A compressed candidate as what its baseline opens as; its weights equal the compressor's output exactly.

    One that runs on a real kernel is a `kerf.backends.serve.Encoder` or `Reranker`, with the same `encode` or `predict` and
    `rank`; torch is imported only where the kernels are its own.
    Raises InputError, naming the file, when one is missing, truncated or edited.
    """
    from kerf.models import manifest
    from kerf.tensors import parquet

    folder = Path(path)
    if folder.is_dir():
        check_folder(str(path), folder, "path", has_weights=False)
    card = manifest.verify(folder)
    model_files.check_no_adapter(str(path), folder)
    if "backend" in card:
        return resolved(BACKENDS.named(card["backend"], "backend").opener)(folder, card)
    weights = parquet.read_weights(folder / parquet.WEIGHTS)
    return families.FAMILIES[card["kind"]].with_weights(folder, card["class"], weights, device)


def open_source(model: str, source: str | os.PathLike | None, device: str = ""):
    """The candidate in directory `source`, or the baseline where it is empty; device: see `open_model`."""
    return load(source, device or current()) if source else open_model(model, device)


def reference_network(model: str, source: str | os.PathLike | None, start):
    """The network that per-layer error is computed against: the baseline, or `start` if shapes changed.

    `start` is what the step began with, opened from `source`.
    """
    if not source:
        return start
    baseline = network(open_model(model))
    shapes = [
        {name: layer.weight.shape for name, layer in architecture.linears(each).items()}
        for each in (start, baseline)
    ]
    return baseline if shapes[0] == shapes[1] else start


def network(opened):
    """The transformer inside, whose layers are compressed."""
    return families.of_opened(opened).network(opened)


def check_kind(model: str, what: str, *known: str) -> None:
    """Refuse a model whose kind is not among the `known`, which is all that `what` can do."""
    kind = families.name_of(resolve(model))
    if kind not in known:
        accepted, article_and_noun = (
            " or ".join(families.FAMILIES[name].CALLED for name in known),
            families.FAMILIES[kind].CALLED,
        )
        raise refuse(
            "model",
            model,
            f"{accepted}; {what} does not know {article_and_noun.partition(' ')[2]}s yet",
        )
