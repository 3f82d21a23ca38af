"""GPTQ checkpoints: a folder in the layout of `kerf.formats.gptq_layout`, read and written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kerf import __version__
from kerf.core.errors import InputError, refuse
from kerf.core.user_files import check_writable
from kerf.formats.gptq_layout import BITS, FORMATS, PARTS, check_parts, pack_layer, unpack_layer
from kerf.models import architecture, manifest, model_files, registry
from kerf.tensors import parquet
from kerf.tensors.quantized import Quantized


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the layout. group_size: -1 for a whole row; files: the open file of each tensor, by its name."""

    folder: Path
    bits: int
    group_size: int
    version: str
    files: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Raises InputError when the folder is no GPTQ checkpoint that can be read."""
        own = folder / "quantize_config.json"
        try:
            settings = json.loads((own if own.is_file() else folder / "config.json").read_text())
            settings = dict(settings if own.is_file() else settings["quantization_config"])
        except (OSError, ValueError, KeyError, TypeError):
            accepted = f"a folder with {own.name}, or a quantization_config in its config.json"
            raise refuse("checkpoint", str(folder), accepted) from None
        if settings.get("dynamic"):
            accepted = "one width for all layers; this one has a `dynamic` of its own for some"
            raise refuse("checkpoint", str(folder), accepted)
        method, bits = settings.get("quant_method", "gptq"), settings.get("bits")
        version = settings.get("checkpoint_format", "gptq")
        if method != "gptq" or bits not in BITS or version not in FORMATS:
            accepted = f"quant_method gptq, bits 2, 3, 4 or 8, {' or '.join(FORMATS)}"
            actual = f"{method}, {bits} bits, {version}"
            raise refuse("checkpoint", str(folder), f"{accepted}; not {actual}")
        files: dict[str, Any] = {}
        for path in model_files.weights(folder):
            file = safe_open(path, "pt")
            files |= dict.fromkeys(file.keys(), file)
        return cls(folder, bits, settings.get("group_size", -1), version, files)

    def refusal(self, accepted: str) -> InputError:
        """The InputError for a checkpoint of another model."""
        return refuse("checkpoint", str(self.folder), f"a checkpoint of this model, {accepted}")

    def check(self, linears: dict[str, list[int]]) -> None:
        """Refuse, reading headers alone, layers whose shapes are not those of `linears`, and quantized layers not in it."""
        suffix = ".qweight"
        quantized = {key.removesuffix(suffix) for key in self.files if key.endswith(suffix)}
        if unknown := sorted(quantized - linears.keys()):
            raise self.refusal(f"which has no linear layer {unknown[0]}")
        for name, shape in linears.items():
            if name not in quantized:
                if f"{name}.weight" not in self.files:
                    raise self.refusal(f"with {name}")
                continue
            shapes = {}
            for part in PARTS:
                key = f"{name}.{part}"
                if key not in self.files:
                    raise InputError(f"{self.folder}: {name} has qweight and no {part}")
                shapes[part] = self.files[key].get_slice(key).get_shape()
            g_idx = self.files[key].get_tensor(key)  # the last of PARTS
            check_parts(name, shapes, g_idx, self.bits)
            if [shapes["qweight"][1], shapes["g_idx"][0]] != shape:
                raise self.refusal(f"whose {name} is {shape}")

    def layer(self, name: str) -> Quantized | None:
        """A linear layer; None where the checkpoint left it in float."""
        if f"{name}.qweight" not in self.files:
            return None
        keys = {part: f"{name}.{part}" for part in PARTS}
        parts = {part: self.files[key].get_tensor(key) for part, key in keys.items()}
        return unpack_layer(parts, self.bits, self.version)

    def floats(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors that are not quantized, in float32, without AutoGPTQ's additions: biases of 0, rotary frequencies."""
        for name in self.files:
            layer, _, part = name.rpartition(".")
            if part in PARTS or name.endswith("rotary_emb.inv_freq"):
                continue
            value = self.files[name].get_tensor(name).float()
            if part != "bias" or f"{layer}.qweight" not in self.files or value.any():
                yield name, value


def export(candidate: str | Path, folder: str | Path, version: str = "gptq") -> Path:
    """Write a causal language model's candidate as a GPTQ checkpoint, its other tensors dequantized to float32.

    version: gptq (v1) or gptq_v2. Raises InputError for a candidate that the layout cannot hold (mixed widths,
    other bits than 2, 3, 4 and 8, half zero points, scales in float32), and for a folder that exists.
    """
    candidate, folder = Path(candidate), Path(folder)
    if version not in FORMATS:
        raise refuse("format", version, " or ".join(FORMATS))
    if folder.exists():
        raise refuse("FOLDER", str(folder), "a folder that does not exist yet")
    check_writable("FOLDER", folder.parent)
    if manifest.verify(candidate)["kind"] != "causal":
        raise refuse("CANDIDATE", str(candidate), "a candidate of a causal language model")
    opened = registry.load(candidate)
    linears = {f"{name}.weight" for name in architecture.linears(opened)}
    tensors: dict[str, torch.Tensor] = {}
    grids, whole_rows = set(), True
    value: Any
    for name, value in parquet.read_tensors(candidate / parquet.WEIGHTS):
        if name in linears and isinstance(value, Quantized):
            layer = name.removesuffix(".weight")
            parts = pack_layer(layer, value, version)
            tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
            grids.add((int(value.bits), value.group_size, value.symmetric))
            whole_rows = whole_rows and value.scale.shape[1] == 1
        else:
            tensors[name] = value.dequantize() if isinstance(value, Quantized) else value.float()
    if whole_rows:
        grids = {(bits, -1, symmetric) for bits, _, symmetric in grids}
    if len(grids) != 1:
        actual = ", ".join(f"{bits} bits in groups of {size}" for bits, size, _ in sorted(grids))
        accepted = f"one width and group size for all linear layers, not {actual or 'none'}"
        raise refuse("CANDIDATE", str(candidate), accepted)
    if version == "gptq":  # AutoGPTQ ties nothing: a missing head would be 0
        tied = getattr(opened, "all_tied_weights_keys", None) or {}
        tensors |= {name: tensors[key].clone() for name, key in tied.items() if key in tensors}
    manifest.copy_small_files(candidate, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_settings(folder, *grids.pop(), version)
    return folder


def _write_settings(
    folder: Path, bits: int, group_size: int, symmetric: bool, version: str
) -> None:
    quantizer = [f"kerf:{__version__}"]
    if version == "gptq" and not symmetric:
        # GPTQModel reads asymmetric v1 zero points only from writers that store them as it has done since 0.9.0.
        quantizer.append("gptqmodel:0.9.0")
    settings: dict[str, Any] = {
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "damp_percent": 0.01,
    }
    settings |= {"desc_act": False, "static_groups": True, "true_sequential": True}
    settings |= {"quant_method": "gptq", "checkpoint_format": version, "lm_head": False}
    settings |= {"model_name_or_path": None, "model_file_base_name": "model"}
    settings["meta"] = {"quantizer": quantizer}
    (folder / "quantize_config.json").write_text(json.dumps(settings, indent=1))
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)  # the name of `dtype` in transformers 4
    config |= {"dtype": "float32", "quantization_config": settings}
    if theta := (config.get("rope_parameters") or {}).get("rope_theta"):
        config["rope_theta"] = theta  # where transformers 4 looks for it
    (folder / "config.json").write_text(json.dumps(config, indent=1))
