"""GPTQ checkpoints: a folder in the layout of `kerf.formats.gptq_layout`, out of a candidate and back into one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kerf.core.errors import InputError, refuse
from kerf.core.user_files import check_writable
from kerf.formats.gptq_layout import BITS, FORMATS, PARTS, check_parts, packed, unpacked
from kerf.models import model_files
from kerf.tensors.quantized import Quantized


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
        """Raises InputError when the folder is no GPTQ checkpoint that can be read."""
        from safetensors import safe_open

        settings = _settings(folder)
        if settings.get("dynamic"):
            raise refuse(
                "checkpoint",
                str(folder),
                "one width for all layers; this one has a `dynamic` of its own for some",
            )
        bits, form = settings.get("bits"), settings.get("checkpoint_format", "gptq")
        if (
            settings.get("quant_method", "gptq") != "gptq"
            or bits not in BITS
            or form not in FORMATS
        ):
            found = f"{settings.get('quant_method')}, {bits} bits, {form}"
            raise refuse(
                "checkpoint",
                str(folder),
                f"quant_method gptq, bits 2, 3, 4 or 8, {' or '.join(FORMATS)}; not {found}",
            )
        files = {}
        for path in model_files.weights(folder):
            with safe_open(path, "np") as file:
                files |= dict.fromkeys(file.keys(), path)
        return cls(folder, bits, settings.get("group_size", -1), form, files)

    def check(self, linears: dict[str, list[int]]) -> None:
        """Refuse, by headers alone, layers that do not fit those of the model, and quantized ones it does not have."""
        from safetensors import safe_open

        found = {key.removesuffix(".qweight") for key in self.files if key.endswith(".qweight")}
        if unknown := sorted(found - linears.keys()):
            raise refuse(
                "checkpoint",
                str(self.folder),
                f"a checkpoint of this model, which has no linear layer {unknown[0]}",
            )
        for name, shape in linears.items():
            if name not in found:
                if f"{name}.weight" not in self.files:
                    raise refuse(
                        "checkpoint", str(self.folder), f"a checkpoint of this model, with {name}"
                    )
                continue
            shapes = {}
            for part in PARTS:
                if f"{name}.{part}" not in self.files:
                    raise InputError(f"{self.folder}: {name} has qweight and no {part}")
                with safe_open(self.files[f"{name}.{part}"], "pt") as file:
                    shapes[part] = file.get_slice(f"{name}.{part}").get_shape()
            check_parts(name, shapes, self._tensor(f"{name}.g_idx"), self.bits)
            if [shapes["qweight"][1], shapes["g_idx"][0]] != shape:
                raise refuse(
                    "checkpoint",
                    str(self.folder),
                    f"a checkpoint of this model, whose {name} is {shape}",
                )

    def layer(self, name: str) -> Quantized | None:
        """A linear layer; None where the checkpoint left it in float."""
        if f"{name}.qweight" not in self.files:
            return None
        return unpacked(
            name, {part: self._tensor(f"{name}.{part}") for part in PARTS}, self.bits, self.form
        )

    def floats(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is not quantized, in float32. AutoGPTQ's own additions are left out: biases of 0, rotary frequencies."""
        for name in self.files:
            if not name.endswith((*(f".{part}" for part in PARTS), "rotary_emb.inv_freq")):
                value = self._tensor(name).float()
                if not (
                    name.endswith(".bias")
                    and name.replace(".bias", ".qweight") in self.files
                    and not value.any()
                ):
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
        accepted = (
            "a folder with quantize_config.json, or with a quantization_config in its config.json"
        )
        raise refuse("checkpoint", str(folder), accepted) from None


def export(candidate: str | Path, folder: str | Path, form: str = "gptq") -> Path:
    """Write a causal language model's candidate as a GPTQ checkpoint, its other tensors dequantized to float32.

    form: gptq (v1) or gptq_v2. Raises InputError for a candidate that the layout cannot hold: mixed widths,
    other bits than 2, 3, 4 and 8, half zero points, scales in float32, a folder that exists.
    """
    from safetensors.torch import save_file

    from kerf.models import architecture, manifest, registry
    from kerf.tensors import parquet

    candidate, folder = Path(candidate), Path(folder)
    if form not in FORMATS:
        raise refuse("format", form, " or ".join(FORMATS))
    if folder.exists():
        raise refuse("FOLDER", str(folder), "a folder that does not exist yet")
    check_writable("FOLDER", folder.parent)
    card = manifest.verify(candidate)
    if card["kind"] != "causal":
        raise refuse("CANDIDATE", str(candidate), "a candidate of a causal language model")
    opened = registry.load(candidate)
    linear = {f"{name}.weight" for name in architecture.linears(opened)}
    tensors, grids, whole_rows = {}, set(), True
    for name, value in parquet.read_tensors(candidate / parquet.WEIGHTS):
        layer = name.removesuffix(".weight")
        if name in linear and isinstance(value, Quantized):
            tensors |= {
                f"{layer}.{part}": tensor for part, tensor in packed(layer, value, form).items()
            }
            grids.add((value.bits, value.group_size, value.symmetric))
            whole_rows = whole_rows and value.scale.shape[1] == 1
        else:
            tensors[name] = value.dequantize() if isinstance(value, Quantized) else value.float()
    grids = {(bits, -1, symmetric) for bits, _, symmetric in grids} if whole_rows else grids
    if len(grids) != 1:
        found = (
            ", ".join(f"{bits} bits in groups of {size}" for bits, size, _ in sorted(grids))
            or "none"
        )
        raise refuse(
            "CANDIDATE",
            str(candidate),
            f"one width and group size for all linear layers, not {found}",
        )
    if form == "gptq":  # AutoGPTQ ties nothing: a head that is not in the file would be 0
        tied = getattr(opened, "all_tied_weights_keys", None) or {}
        tensors |= {
            name: tensors[source].clone() for name, source in tied.items() if source in tensors
        }
    manifest.copy_small_files(candidate, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_settings(folder, *grids.pop(), form)
    return folder


def _write_settings(folder: Path, bits: int, group_size: int, symmetric: bool, form: str) -> None:
    from kerf import __version__

    # GPTQModel reads asymmetric zero points of the first format only if somebody counts them as it has done since 0.9.0.
    counts = ["gptqmodel:0.9.0"] if form == "gptq" and not symmetric else []
    settings = {
        "bits": bits,
        "group_size": group_size,
        "desc_act": False,
        "static_groups": True,
        "sym": symmetric,
        "true_sequential": True,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": form,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        "damp_percent": 0.01,
        "meta": {"quantizer": [f"kerf:{__version__}", *counts]},
    }
    (folder / "quantize_config.json").write_text(json.dumps(settings, indent=1))
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)  # what `dtype` was called before
    if theta := (config.get("rope_parameters") or {}).get("rope_theta"):
        config["rope_theta"] = theta  # where transformers 4 looks for it
    (folder / "config.json").write_text(
        json.dumps({**config, "dtype": "float32", "quantization_config": settings}, indent=1)
    )
