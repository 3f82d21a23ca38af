"""GPTQ checkpoints, read and written: folders in the layout that AutoGPTQ made common.

A linear layer of `rows` x `columns` at 2, 3, 4 or 8 bits becomes

    qweight  int32 (columns * bits / 32, rows)     codes along the columns
    qzeros   int32 (groups, rows * bits / 32)      zero points along the rows
    scales   float16 (groups, rows)                weight = (code - zero point) * scale
    g_idx    int32 (columns,)                      the group of each column

Words fill from their least significant bit, and 3-bit codes continue from one word into the next. The first format
(`gptq`, v1) stores the zero point minus one, the second (`gptq_v2`) the zero point. In the first, a zero point of 0 has no
code of its own: readers take it for 2**bits or let it borrow from its neighbour. Kerf flips such a group, code -> top -
code and scale -> -scale, which is the same weight to the last bit for every reader.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kerf import __version__
from kerf.core.errors import InputError, refuse
from kerf.core.user_files import check_writable
from kerf.models import architecture, manifest, model_files, registry
from kerf.tensors import parquet
from kerf.tensors.packing import pack, unpack
from kerf.tensors.quantized import Quantized, top_code

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def pack_layer(name: str, layer: Quantized, version: str) -> dict[str, Tensor]:
    """The four tensors of a layer in a version of FORMATS. Raises InputError, naming the layer, for what cannot be stored."""
    (rows, columns), groups = layer.codes.shape, layer.scale.shape[1]
    if layer.bits not in BITS:
        raise refuse("bits", layer.bits, f"2, 3, 4 or 8 in a GPTQ checkpoint ({name})")
    if layer.scale.dtype != torch.float16:
        raise refuse("scale_dtype", "float32", f"float16 in a GPTQ checkpoint ({name})")
    if rows * layer.bits % 32 or columns * layer.bits % 32:
        accepted = f"rows and columns that fill words of 32 bits at {layer.bits} bits"
        raise refuse("model", name, accepted)
    if (layer.zero_point % 1 != 0).any():
        accepted = "whole zero points, as 2 bits have with symmetric true, or with clip none and no reconstruct"
        raise refuse("CANDIDATE", name, accepted)
    grid = [part.expand(rows, groups).contiguous() for part in (layer.scale, layer.zero_point)]
    layer = replace(layer, scale=grid[0], zero_point=grid[1])
    if layer.mask is not None:  # pruned weights are 0: they get the code of their zero point
        zeros = layer.zero_point.repeat_interleave(columns // groups, 1).to(torch.uint8)
        layer = replace(layer, codes=torch.where(layer.mask, layer.codes, zeros))
    if version == "gptq":
        layer = _flip(layer, layer.zero_point == 0)
    zeros = layer.zero_point.T.to(torch.int64) - int(version == "gptq")
    return {
        "qweight": _words(layer.codes, layer.bits).T.contiguous(),
        "qzeros": _words(zeros, layer.bits),
        "scales": layer.scale.T.contiguous(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // layer.group_size,
    }


def unpack_layer(parts: dict[str, Tensor], bits: int, version: str) -> Quantized:
    """The layer of four tensors, which passed `Checkpoint.check`."""
    qweight, qzeros, scales, g_idx = (parts[part] for part in PARTS)
    if version == "gptq" and bits != 3:  # add one to every field of a word, which undoes borrows
        qzeros = qzeros + sum(1 << shift for shift in range(0, 32, bits))
    zero_point = _values(qzeros, bits, qweight.shape[1]).T.float().contiguous()
    if version == "gptq" and bits == 3:
        zero_point = (zero_point + 1) % 8
    scale = scales.T.contiguous()
    scale = scale if scale.dtype == torch.float16 else scale.float()
    codes = _values(qweight.T, bits, len(g_idx)).contiguous()
    layer = Quantized(codes, scale, zero_point, bits, len(g_idx) // len(scales), symmetric=False)
    layer = _flip(layer, scale < 0)
    return replace(layer, symmetric=bool((layer.zero_point == (top_code(bits) + 1) // 2).all()))


def _flip(layer: Quantized, groups: Tensor) -> Quantized:
    """The same weight with the grids of `groups`, bool (rows, groups), running downwards."""
    top = top_code(layer.bits)
    codes = layer.codes.view(*groups.shape, -1)
    codes = torch.where(groups[..., None], top - codes, codes).view(layer.codes.shape)
    scale = torch.where(groups, -layer.scale, layer.scale)
    zero_point = torch.where(groups, top - layer.zero_point, layer.zero_point)
    return replace(layer, codes=codes, scale=scale, zero_point=zero_point)


def _words(values: Tensor, bits: float) -> Tensor:
    """Values (m, n) as int32 (m, n * bits / 32)."""
    words = np.frombuffer(bytearray(pack(values.numpy(), bits)), "<i4")
    return torch.from_numpy(words).view(len(values), -1)


def _values(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 (m, n * bits / 32) as uint8 values (m, count)."""
    packed = words.contiguous().numpy().tobytes()
    values = torch.from_numpy(unpack(packed, bits, words.numel() * 32 // bits))
    return values.view(len(words), -1)[:, :count]


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
            accepted += f"; not {method}, {bits} bits, {version}"
            raise refuse("checkpoint", str(folder), accepted)
        files: dict[str, Any] = {}
        for path in model_files.weights(folder):
            file = safe_open(path, "pt")
            files |= dict.fromkeys(file.keys(), file)
        return cls(folder, bits, settings.get("group_size", -1), version, files)

    def refusal(self, accepted: str) -> InputError:
        """The InputError for a checkpoint of another model."""
        return refuse("checkpoint", str(self.folder), f"a checkpoint of this model, {accepted}")

    def check(self, linears: dict[str, list[int]]) -> None:
        """Refuse, from shapes and g_idx alone, layers that do not fit `linears` or the layout, and layers not in `linears`."""
        files = self.files
        quantized = {key.removesuffix(".qweight") for key in files if key.endswith(".qweight")}
        if unknown := sorted(quantized - linears.keys()):
            raise self.refusal(f"which has no linear layer {unknown[0]}")
        for name, shape in linears.items():
            if name not in quantized:
                if f"{name}.weight" not in files:
                    raise self.refusal(f"with {name}")
                continue
            keys = {part: f"{name}.{part}" for part in PARTS}
            if missing := [part for part, key in keys.items() if key not in files]:
                raise InputError(f"{self.folder}: {name} has qweight and no {missing[0]}")
            shapes = {part: files[key].get_slice(key).get_shape() for part, key in keys.items()}
            (words, rows), (groups, zero_words) = shapes["qweight"], shapes["qzeros"]
            (columns,) = shapes["g_idx"]
            packed = [words * 32, zero_words * 32, shapes["scales"]]
            expected = [columns * self.bits, rows * self.bits, [groups, rows]]
            if packed != expected or columns % groups:
                accepted = f"tensors that fit together at {self.bits} bits; these are {shapes}"
                raise refuse("checkpoint", name, accepted)
            g_idx = files[keys["g_idx"]].get_tensor(keys["g_idx"])
            if not torch.equal(g_idx.long(), torch.arange(columns) // (columns // groups)):
                accepted = "groups of neighbouring columns (static groups, or no act-order)"
                raise refuse("checkpoint", f"{name}.g_idx", accepted)
            if [rows, columns] != shape:
                raise self.refusal(f"whose {name} is {shape}")

    def layer(self, name: str) -> Quantized | None:
        """A linear layer; None where the checkpoint left it in float."""
        if f"{name}.qweight" not in self.files:
            return None
        keys = {part: f"{name}.{part}" for part in PARTS}
        parts = {part: self.files[key].get_tensor(key) for part, key in keys.items()}
        return unpack_layer(parts, self.bits, self.version)

    def floats(self) -> Iterator[tuple[str, Tensor]]:
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
    count = len(architecture.linears(opened))
    if count != len(architecture.linears(registry.network(opened))):
        accepted = "a candidate whose matrices are all in torch.nn.Linear: no experts, no Conv1D"
        raise refuse("CANDIDATE", str(candidate), accepted)
    linears = {f"{name}.weight" for name in architecture.linears(opened)}
    tensors: dict[str, Tensor] = {}
    grids, whole_rows = set(), True
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
    settings: Any = {"bits": bits, "group_size": group_size, "sym": symmetric, "desc_act": False}
    settings |= {"damp_percent": 0.01, "static_groups": True, "true_sequential": True}
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
