"""Models: from a name to a directory, what is in it, and how it is opened.

A model is a name of the list below, a local directory or a hub id. Weights are read from safetensors
alone, and no code that a model brings along is run. What depends on the kind of model stands here.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kerf import anatomy, gguf, kinds, patience, rerank, sources
from kerf.artifacts import artifact, digest, meta
from kerf.errors import Refused, nearest, refuse
from kerf.places import data_folder


@dataclass(frozen=True)
class Preset:
    """An embedded model and the parameters that suit it (they yield to the experiment's).

    made: what the package's files become before they are opened; about: what the model is, where it is not the source's.
    """

    source: sources.Source
    calibration: dict = field(default_factory=dict)
    made: Callable[[Path], Path] = lambda folder: folder
    about: str = ""


MODELS = {
    "minilm": Preset(sources.MINILM, {"max_length": 128}),
    "smollm2": Preset(sources.SMOLLM2, {"samples": 32, "max_length": 256}, lambda folder: gguf.converted(folder / "model.gguf")),
    "reranker": Preset(sources.MINILM, {"max_length": 128}, rerank.trained,
                       "a cross-encoder that Kerf trained itself, from all-MiniLM-L6-v2 on inverse-cloze pairs of the bundled text"),
}  # fmt: skip
_KNOWN_MODULES = ("sentence_transformers.",)


def resolve(model: str) -> Path:
    """Directory of a model: embedded name, local directory or hub id.

    Raises Refused when there is none, when a hub cannot be reached, or when the files are not safe.
    """
    if model in MODELS:
        return MODELS[model].made(sources.fetch(MODELS[model].source))
    local = Path(model).expanduser()
    if local.is_dir():
        _check_files(model, local)
        return local.resolve()
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise refuse("model", model, f"a directory, a hub id or a known name: {nearest(model, MODELS)}")
    folder = _download(model)
    _check_files(model, folder)
    return folder


def _download(hub_id: str) -> Path:
    """Files of a hub model without its pickles."""
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    from huggingface_hub import snapshot_download

    patience.bound_hub()
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        folder = snapshot_download(hub_id, allow_patterns=wanted, cache_dir=data_folder() / "hub", etag_timeout=patience.SECONDS)
    except Exception as error:  # the client raises a dozen kinds: offline, DNS, proxy, missing, gated
        cause = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise refuse("model", hub_id, f"the hub could not provide it ({cause}); a local directory works") from None
    return Path(folder)


def _check_files(model: str, folder: Path) -> None:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if not any(name.endswith("config.json") for name in names):
        raise refuse("model", model, "a directory with config.json and *.safetensors; this one is no model")
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")))
        held = f"only pickles ({pickles[0]}), which could run code" if pickles else "no weights"
        raise refuse("model", model, f"weights in safetensors; this one has {held}")
    for path in (folder / "modules.json", folder / "config.json"):
        if path.is_file():
            _check_code(model, path)


def _check_code(model: str, path: Path) -> None:
    try:
        config = json.loads(path.read_text())
        foreign = _foreign_modules(model, path, config) if isinstance(config, list) else _foreign_classes(model, config)
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise refuse("model", model, f"a {path.name} in the form that its library writes") from None
    if foreign:
        raise refuse("model", model, f"a model without code of its own; this one would run {foreign[0]}")


def _foreign_modules(model: str, path: Path, modules: list[dict]) -> list[str]:
    for module in modules:
        pickles = list((path.parent / module["path"]).glob("pytorch_model*.bin")) if module["path"] else []
        if pickles and not list((path.parent / module["path"]).glob("*.safetensors")):
            raise refuse("model", model, f"weights in safetensors; {module['path']} has only pickles")
    return [module["type"] for module in modules if not module["type"].startswith(_KNOWN_MODULES)]


def _foreign_classes(model: str, config: dict) -> list:
    "".join(config.get("architectures") or [])  # names, or the file is not what it should be
    return sorted((config.get("auto_map") or {}).values(), key=str)


def weights_digest(folder: Path) -> str:
    """sha256 over the files that make the model what it is."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".txt", ".parquet"))
    kept = [path for path in files if path.name != "meta.json"]
    return digest([(path.relative_to(folder).as_posix(), sources.sha256(path)) for path in kept])


def describe(model: str) -> dict:
    """What is in a model, found once and kept: kind, parameters, bytes, linears, embeddings, on_grid, origin.

    `linears` and `embeddings` map names to [rows, columns], `on_grid` those whose weights lie on a low-bit
    grid already to its bits and group_size. Raises Refused for a tensor that holds NaN
    or infinity, naming it, and for a directory that does not open.
    """
    folder = resolve(model)

    def make(_: Path) -> dict:
        opened = open_model(model)
        _check_finite(model, opened)
        net = network(opened)
        check_layers(model, net)
        weights = [p for p in folder.rglob("*.safetensors") if p.is_file()]
        return {
            "id": model,
            "kind": kinds.name_of(folder),
            "parameters": sum(p.numel() for p in opened.parameters()),
            "bytes": sum(path.stat().st_size for path in weights),
            "other_bytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p not in weights),
            "linears": {name: list(layer.weight.shape) for name, layer in anatomy.linears(net).items()},
            "embeddings": {name: list(layer.weight.shape) for name, layer in anatomy.embeddings(net).items()},
            "on_grid": _on_grid(net),
        }

    found = meta(artifact("describe", {"model": model, "weights": weights_digest(folder)}, make))["result"]
    return {**found, "origin": origin(model)}


def origin(model: str) -> str:
    """What an embedded model is and where it comes from; empty for others."""
    preset = MODELS.get(model)
    return (preset.about or preset.source.origin) if preset else ""


def _on_grid(net) -> dict[str, dict]:
    """Layers whose weights lie on a low-bit grid already: bits and group_size by name."""
    from kerf.ongrid import grid_of

    layers = {**anatomy.embeddings(net), **anatomy.linears(net)}
    found = {name: grid_of(layer.weight.data) for name, layer in layers.items()}
    return {name: {"bits": grid[0], "group_size": grid[1]} for name, grid in found.items() if grid}


def _check_finite(model: str, opened) -> None:
    for name, tensor in opened.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise refuse("model", model, f"finite weights; {name} holds NaN or infinity")


def check_layers(model: str, net) -> None:
    """Refuse a network whose linear layers keep their weights transposed, by the layer's name."""
    for name, module in net.named_modules():
        if type(module).__name__ == "Conv1D":
            raise refuse("model", model, f"layers of torch.nn.Linear; {name} is a transposed Conv1D")


def open_model(name: str, device: str = "cpu"):
    """The baseline in float32, ready to use: a SentenceTransformer or CrossEncoder, or a causal LM of transformers.

    Raises Refused (see `resolve`).
    """
    folder = resolve(name)
    return kinds.of(folder).open_folder(folder, device)


def load(path: str | os.PathLike, device: str = "cpu"):
    """A compressed candidate as what its baseline opens as; its weights equal the compressor's output exactly.

    One that runs on a real kernel is a `kerf.backends.serve.Encoder` or `Reranker`, with the same `encode` or `predict` and
    `rank`; torch is imported only where the kernels are its own.
    Raises Refused, naming the file, when one is missing, truncated or edited.
    """
    from kerf import seal, store

    folder = Path(path)
    card = seal.verify(folder)
    if "backend" in card:
        from kerf import backends

        return backends.load(folder, card)
    weights = store.read_weights(folder / store.WEIGHTS)
    return kinds.KINDS[card["kind"]].with_weights(folder, card["class"], weights, device)


def open_source(model: str, source: str | os.PathLike | None, device: str = "cpu"):
    """The candidate in directory `source`, or the baseline where it is empty."""
    return load(source, device) if source else open_model(model, device)


def measured_by(model: str, source: str | os.PathLike | None, start, device: str = "cpu"):
    """The network whose layers say what a step lost that began at `start` (opened from `source`): the baseline's.

    Where neurons, heads or blocks went, there is nothing to compare layer by layer any more, and it is `start`.
    """
    if not source:
        return start
    baseline = network(open_model(model, device))
    shapes = [{name: layer.weight.shape for name, layer in anatomy.linears(each).items()} for each in (start, baseline)]
    return baseline if shapes[0] == shapes[1] else start


def network(opened):
    """The transformer inside, whose layers are compressed."""
    return kinds.of_opened(opened).network(opened)


def check_kind(model: str, what: str, *known: str) -> None:
    """Refuse a model whose kind is not among the `known`, which is all that `what` can do."""
    kind = kinds.name_of(resolve(model))
    if kind not in known:
        accepted, article_and_noun = " or ".join(kinds.CALLED[name] for name in known), kinds.CALLED[kind]
        raise refuse("model", model, f"{accepted}; {what} does not know {article_and_noun.partition(' ')[2]}s yet")
