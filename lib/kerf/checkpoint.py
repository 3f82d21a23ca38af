"""GPTQ checkpoints: the layout that AutoGPTQ made common, out of a candidate and back into one.

A linear layer of `rows` x `columns` at 2, 3, 4 or 8 bits becomes

    qweight  int32 (columns * bits / 32, rows)     codes along the columns
    qzeros   int32 (groups, rows * bits / 32)      zero points along the rows
    scales   float16 (groups, rows)                weight = (code - zero point) * scale
    g_idx    int32 (columns,)                      the group of each column

Words fill from their least significant bit on, and 3-bit codes run on from one word into the next. The
first convention (`gptq`, v1) stores one less than the zero point, the second (`gptq_v2`) the zero point. In
the first a zero point of 0 has no code of its own, and readers make 2**bits of it or let it run over into
its neighbour. Kerf writes such a group upside down, code -> top - code and scale -> -scale, which is the
same weight to the last bit for every reader.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kerf.errors import Refused, refuse
from kerf.quantize.grid import Quantized, top_code
from kerf.quantize.packing import pack, unpack

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def packed(name: str, quantized: Quantized, form: str) -> dict[str, torch.Tensor]:
    """The four tensors of a layer. Raises Refused, naming the layer, for what the layout cannot say."""
    columns = quantized.codes.shape[1]
    _check_layer(name, quantized)
    full = _upright(quantized, form == "gptq")
    zeros = full.zero_point.T.numpy().astype(np.int64) - (form == "gptq")
    return {
        "qweight": _words(full.codes.numpy(), full.bits).T.contiguous(),
        "qzeros": _words(zeros, full.bits),
        "scales": full.scale.T.contiguous(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // full.group_size,
    }


def unpacked(name: str, parts: dict[str, torch.Tensor], bits: int, form: str) -> Quantized:
    """A layer of its four tensors. Raises Refused, naming the layer, for tensors that do not fit together."""
    rows, columns = parts["qweight"].shape[1], len(parts["g_idx"])
    check_parts(name, {part: list(tensor.shape) for part, tensor in parts.items()}, parts["g_idx"], bits)
    group_size = columns // len(parts["scales"])
    codes = _values(parts["qweight"].T, bits, columns)
    qzeros = parts["qzeros"].contiguous()
    if form == "gptq" and bits != 3:  # an int32 at a time: what a zero point of 0 borrowed is given back
        qzeros = qzeros + sum(1 << shift for shift in range(0, 32, bits))
    zeros = _values(qzeros, bits, rows).astype(np.int64)
    if form == "gptq" and bits == 3:
        zeros = (zeros + 1) % 8
    zero_point = torch.from_numpy(zeros.T.astype(np.float32)).contiguous()
    scale = parts["scales"].T.contiguous()
    scale = scale if scale.dtype == torch.float16 else scale.float()
    found = _turned(Quantized(torch.from_numpy(codes.copy()), scale, zero_point, bits, group_size, False), scale < 0)
    return replace(found, symmetric=bool((found.zero_point == (top_code(bits) + 1) // 2).all()))


def check_parts(name: str, shapes: dict[str, list[int]], g_idx: torch.Tensor, bits: int) -> None:
    """Refuse shapes that do not fit together at `bits`, and groups that are not runs of columns."""
    (words, rows), (groups, zero_words), columns = shapes["qweight"], shapes["qzeros"], len(g_idx)
    fits = words * 32 == columns * bits and zero_words * 32 == rows * bits and shapes["scales"] == [groups, rows]
    if not fits or columns % groups:
        raise refuse("checkpoint", name, f"tensors that fit together at {bits} bits; these are {shapes}")
    if not torch.equal(g_idx.long(), torch.arange(columns) // (columns // groups)):
        raise refuse("checkpoint", f"{name}.g_idx", "groups of neighbouring columns (static groups, or no act-order)")


def _check_layer(name: str, quantized: Quantized) -> None:
    rows, columns = quantized.codes.shape
    if quantized.bits not in BITS:
        raise refuse("bits", quantized.bits, f"2, 3, 4 or 8 in a GPTQ checkpoint ({name})")
    if quantized.scale.dtype != torch.float16:
        raise refuse("scale_dtype", "float32", f"float16 in a GPTQ checkpoint ({name})")
    if rows * quantized.bits % 32 or columns * quantized.bits % 32:
        raise refuse("model", name, f"rows and columns that fill words of 32 bits at {quantized.bits} bits")
    if (quantized.zero_point % 1 != 0).any():
        accepted = "whole zero points, as 2 bits have with symmetric true, or with clip none and no reconstruct"
        raise refuse("CANDIDATE", name, accepted)


def _upright(quantized: Quantized, no_zero: bool) -> Quantized:
    """With a grid for every row, and what is pruned at its zero point; no_zero: and no zero point of 0."""
    shape = (len(quantized.codes), quantized.scale.shape[1])
    scale, zero_point = (part.expand(shape).contiguous() for part in (quantized.scale, quantized.zero_point))
    codes = quantized.codes
    if quantized.kept is not None:
        zeros = zero_point[..., None].expand(*shape, codes.shape[1] // shape[1]).reshape(codes.shape)
        codes = torch.where(quantized.kept, codes, zeros.to(torch.uint8))
    full = replace(quantized, codes=codes, scale=scale, zero_point=zero_point)
    return _turned(full, full.zero_point == 0) if no_zero else full


def _turned(quantized: Quantized, which: torch.Tensor) -> Quantized:
    """The same weight, with the grids in `which` (rows, groups) upside down."""
    top = top_code(quantized.bits)
    codes = quantized.codes.view(*which.shape, -1)
    return replace(
        quantized,
        codes=torch.where(which[..., None], top - codes, codes).view(quantized.codes.shape),
        scale=torch.where(which, -quantized.scale, quantized.scale),
        zero_point=torch.where(which, top - quantized.zero_point, quantized.zero_point),
    )


def _words(values: np.ndarray, bits: int) -> torch.Tensor:
    """Values (m, n) as int32 (m, n * bits / 32)."""
    return torch.from_numpy(np.frombuffer(pack(values, bits), "<i4").reshape(len(values), -1).copy())


def _values(words: torch.Tensor, bits: int, count: int) -> np.ndarray:
    """int32 (m, n * bits / 32) as values (m, count)."""
    raw = np.ascontiguousarray(words.numpy())
    return unpack(raw.tobytes(), bits, raw.size * 32 // bits).reshape(len(raw), -1)[:, :count]


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the layout: its bits, group size (-1: a whole row) and format, and where its tensors lie."""

    folder: Path
    bits: int
    group_size: int
    form: str
    files: dict[str, Path]

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Raises Refused when the folder is no GPTQ checkpoint that can be read."""
        from safetensors import safe_open

        settings = _settings(folder)
        if settings.get("dynamic"):
            raise refuse("checkpoint", str(folder), "one width for all layers; this one has a `dynamic` of its own for some")
        bits, form = settings.get("bits"), settings.get("checkpoint_format", "gptq")
        if settings.get("quant_method", "gptq") != "gptq" or bits not in BITS or form not in FORMATS:
            found = f"{settings.get('quant_method')}, {bits} bits, {form}"
            raise refuse("checkpoint", str(folder), f"quant_method gptq, bits 2, 3, 4 or 8, {' or '.join(FORMATS)}; not {found}")
        files = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "np") as file:
                files |= dict.fromkeys(file.keys(), path)
        return cls(folder, bits, settings.get("group_size", -1), form, files)

    def check(self, linears: dict[str, list[int]]) -> None:
        """Refuse, by headers alone, layers that do not fit those of the model, and quantized ones it does not have."""
        from safetensors import safe_open

        found = {key.removesuffix(".qweight") for key in self.files if key.endswith(".qweight")}
        if unknown := sorted(found - linears.keys()):
            raise refuse("checkpoint", str(self.folder), f"a checkpoint of this model, which has no linear layer {unknown[0]}")
        for name, shape in linears.items():
            if name not in found:
                if f"{name}.weight" not in self.files:
                    raise refuse("checkpoint", str(self.folder), f"a checkpoint of this model, with {name}")
                continue
            shapes = {}
            for part in PARTS:
                if f"{name}.{part}" not in self.files:
                    raise Refused(f"{self.folder}: {name} has qweight and no {part}")
                with safe_open(self.files[f"{name}.{part}"], "pt") as file:
                    shapes[part] = file.get_slice(f"{name}.{part}").get_shape()
            check_parts(name, shapes, self._tensor(f"{name}.g_idx"), self.bits)
            if [shapes["qweight"][1], shapes["g_idx"][0]] != shape:
                raise refuse("checkpoint", str(self.folder), f"a checkpoint of this model, whose {name} is {shape}")

    def layer(self, name: str) -> Quantized | None:
        """A linear layer; None where the checkpoint left it in float."""
        if f"{name}.qweight" not in self.files:
            return None
        return unpacked(name, {part: self._tensor(f"{name}.{part}") for part in PARTS}, self.bits, self.form)

    def floats(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is not quantized, in float32. AutoGPTQ's own additions are left out: biases of 0, rotary frequencies."""
        for name in self.files:
            if not name.endswith((*(f".{part}" for part in PARTS), "rotary_emb.inv_freq")):
                value = self._tensor(name).float()
                if not (name.endswith(".bias") and name.replace(".bias", ".qweight") in self.files and not value.any()):
                    yield name, value

    def _tensor(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self.files[name], "pt") as file:
            return file.get_tensor(name)


def _settings(folder: Path) -> dict:
    try:
        own = folder / "quantize_config.json"
        found = json.loads((own if own.is_file() else folder / "config.json").read_text())
        return dict(found if own.is_file() else found["quantization_config"])
    except (OSError, ValueError, KeyError, TypeError):
        accepted = "a folder with quantize_config.json, or with a quantization_config in its config.json"
        raise refuse("checkpoint", str(folder), accepted) from None


def export(candidate: str | Path, folder: str | Path, form: str = "gptq") -> Path:
    """Write a causal language model's candidate as a GPTQ checkpoint, its other tensors dequantized to float32.

    form: gptq (v1) or gptq_v2. Raises Refused for a candidate that the layout cannot hold: mixed widths,
    other bits than 2, 3, 4 and 8, half zero points, scales in float32, a folder that exists.
    """
    from safetensors.torch import save_file

    from kerf import anatomy, models, store

    candidate, folder = Path(candidate), Path(folder)
    if form not in FORMATS:
        raise refuse("format", form, " or ".join(FORMATS))
    if folder.exists():
        raise refuse("FOLDER", str(folder), "a folder that does not exist yet")
    card = store.verify(candidate)
    if card["kind"] != "causal":
        raise refuse("CANDIDATE", str(candidate), "a candidate of a causal language model")
    linear = {f"{name}.weight" for name in anatomy.linears(models.load(candidate))}
    tensors, grids, whole_rows = {}, set(), True
    for name, value in store.read_tensors(candidate / store.WEIGHTS):
        layer = name.removesuffix(".weight")
        if name in linear and isinstance(value, Quantized):
            tensors |= {f"{layer}.{part}": tensor for part, tensor in packed(layer, value, form).items()}
            grids.add((value.bits, value.group_size, value.symmetric))
            whole_rows = whole_rows and value.scale.shape[1] == 1
        else:
            tensors[name] = value.dequantize() if isinstance(value, Quantized) else value.float()
    grids = {(bits, -1, symmetric) for bits, _, symmetric in grids} if whole_rows else grids
    if len(grids) != 1:
        found = ", ".join(f"{bits} bits in groups of {size}" for bits, size, _ in sorted(grids)) or "none"
        raise refuse("CANDIDATE", str(candidate), f"one width and group size for all linear layers, not {found}")
    store.copy_small_files(candidate, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_settings(folder, *grids.pop(), form)
    return folder


def _write_settings(folder: Path, bits: int, group_size: int, symmetric: bool, form: str) -> None:
    from kerf import __version__

    settings = {"bits": bits, "group_size": group_size, "desc_act": False, "static_groups": True, "sym": symmetric,
                "true_sequential": True, "lm_head": False, "quant_method": "gptq", "checkpoint_format": form,
                "model_name_or_path": None, "model_file_base_name": "model",
                "damp_percent": 0.01, "meta": {"quantizer": [f"kerf:{__version__}"]}}  # fmt: skip
    (folder / "quantize_config.json").write_text(json.dumps(settings, indent=1))
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)  # what `dtype` was called before
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32", "quantization_config": settings}, indent=1))
