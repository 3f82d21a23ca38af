"""The quantize stage of methods whose result runs on real kernels: a model or candidate in, a runnable out.

static: inputs and weights in 8 bits, ranges from calibration text (`kerf.backends.int8`); dynamic: the same, with the
range of every token's inputs as it comes. weight_only: only weights are small, in 8 or 4 bits by GPTQ, and are unpacked as
they are multiplied. bfloat16: everything is computed in half the bits, where the processor has units for it. What
computes is the library that the step names as `backend`.
"""

import time
from pathlib import Path

import torch

from kerf import backends
from kerf.backends import int8, mixed, serve, tokens
from kerf.backends.int8 import Int8Linear
from kerf.calibration import activations
from kerf.calibration.heldout import embed, mean_cosine
from kerf.config import Calibration
from kerf.config.quantize import Quantize
from kerf.core.cache import artifact
from kerf.core.errors import InputError, refuse
from kerf.core.memory import peak_rss_bytes, reset_peak_rss
from kerf.core.scratch import scratch
from kerf.models import architecture, families, manifest, registry
from kerf.quantize.compress import compress
from kerf.quantize.layers import embedding
from kerf.tensors.quantized import Quantized

SAME = 0.01  # of the answers' length: how far those of a graph in float may be off, on a shape that it was not read with
HELD = 8  # batches of text held back that say which layers stay in float


def check(model: str, step: Quantize) -> None:
    """Refuse, before heavy work, another kind of model, a library that is not there, and a model that changes texts first."""
    if step.min_cosine is None:
        registry.check_kind(model, f"method: {step.method}", "encoder", "reranker")
    else:  # a mean cosine, which embeddings have
        registry.check_kind(model, f"method: {step.method} with min_cosine", "encoder")
    backends.backend(step.backend)
    serve.check(model, registry.resolve(model))


def prepare(model: str, step: Quantize, calibration: Calibration, source: str | Path = "") -> Path:
    """Directory of the candidate that a real kernel runs; made once; `check` came before."""
    origin = registry.weights_digest(Path(source)) if source else None
    key = {
        "step": step.model_dump(),
        "calibration": activations.key_of(model, calibration),
        "source": origin,
    }
    return artifact(
        "candidate",
        key,
        lambda folder: _make(folder, model, step, calibration, source),
        also=backends.modules(step.backend),
    )


def _make(folder, model, step, calibration, source) -> dict:
    import sentence_transformers  # noqa: F401  imports are not what is measured

    library = backends.backend(step.backend)
    reset_peak_rss()
    clock = time.perf_counter()
    opened = registry.open_source(model, source)
    origin = Path(source) if source else registry.resolve(model)
    manifest.copy_small_files(origin, folder)
    told, sequences = tokens.write(opened, folder), mixed.sequences(opened)
    tokens.check(opened, tokens.read(folder, told))
    graph = library.convert(opened)
    check_shapes(library, graph, opened, step)
    linears, there = architecture.linears(registry.network(opened)), library.weights(graph)
    integers, packed = _cut(step, opened, registry.open_source(model, source), calibration)
    library.put_integers(graph, {name: layer for name, layer in integers.items() if name in there})
    library.put_packed(graph, {name: value for name, value in packed.items() if name in there})
    library.save(graph, folder, half=step.unquantized_dtype == "float16")
    seconds, peak = time.perf_counter() - clock, peak_rss_bytes()
    steps = [*(manifest.verify(origin)["steps"] if source else []), {"quantize": step.model_dump()}]
    manifest.write_manifest(
        folder,
        {
            "model": model,
            "kind": families.name_of(registry.resolve(model)),
            "class": type(registry.network(opened)).__name__,
            "steps": steps,
            "origin": registry.weights_digest(registry.resolve(model)),
            "backend": step.backend,
            "settings": library.settings(step),
            "tokens": told,
            "code_bits": _code_bits(step) if integers else None,
        },
    )
    same = mixed.ROUNDED if integers or step.compute_dtype == "bfloat16" else mixed.SAME
    mixed.check(
        serve.opened(folder, manifest.verify(folder)).run,
        sequences,
        told["pad"],
        told["max_length"],
        same,
    )
    layers = [_row(name, integers.get(name), packed.get(name), name in there) for name in linears]
    sizes = [
        _bits(linears[name].weight, integers.get(name), packed.get(name), step)
        for name in linears
        if name in there
    ]
    count = sum(linears[name].weight.numel() for name in linears if name in there)
    return {
        "model": model,
        "steps": steps,
        "backend": step.backend,
        "compress_seconds": seconds,
        "compress_peak_rss_bytes": peak,
        "linear_bits": sum(sizes) / count,
        "sparsity": 0.0,
        "layers": layers,
        **manifest.size(folder),
    }


@torch.no_grad()
def check_shapes(library, graph, opened, step: Quantize) -> None:
    """Refuse a graph that is right only for texts of the number and length that it was read with."""
    if graph is opened:
        return
    given = mixed.batch(
        mixed.sequences(opened), opened.tokenizer.pad_token_id or 0, opened.max_seq_length
    )
    aim = families.whole(opened)(
        *(torch.from_numpy(given[name]) for name in families.of_opened(opened).inputs(opened))
    )
    try:
        with scratch() as folder:
            library.save(graph, folder, half=False)
            settings = library.settings(step.model_copy(update={"compute_dtype": "float32"}))
            run = library.run(folder, {"settings": settings}, 1)
            found = torch.from_numpy(run(**given))
        same = found.shape == aim.shape and (found - aim).norm() < SAME * aim.norm()
    except InputError:
        raise
    except Exception as error:  # the libraries raise a dozen kinds
        raise refuse(
            "backend",
            step.backend,
            f"a model that it runs ({str(error).strip().splitlines()[-1][-160:]})",
        ) from error
    if not same:
        raise refuse(
            "backend",
            step.backend,
            "a model whose graph does not depend on the number of texts and tokens; this one's does",
        )


def _cut(
    step: Quantize, opened, reference, calibration: Calibration
) -> tuple[dict[str, Int8Linear], dict[str, Quantized]]:
    """What becomes of the layers: on integer kernels, and packed."""
    net = registry.network(opened)
    kind = families.of_opened(opened)
    batches = kind.batches(opened, calibration)
    held = kind.held_batches(reference, calibration)[:HELD] if step.min_cosine is not None else []
    groups = activations.groups_of(net, batches[0])
    if step.method == "weight_only":
        return {}, {
            name: value
            for name, value, *_ in compress(
                net, registry.network(reference), step.gptq(), groups, {}, batches
            )
        }
    small = step.embedding_bits() < 32 and step.method != "bfloat16"
    packed = (
        {name: embedding(name, layer, step) for name, layer in architecture.embeddings(net).items()}
        if small
        else {}
    )
    for name, value in packed.items():  # every layer sees them
        net.get_submodule(name).weight.data = value.dequantize()
    bits, dynamic = _code_bits(step), step.method == "dynamic"
    integers = (
        {}
        if step.method == "bfloat16"
        else int8.integers(net, registry.network(reference), groups, batches, dynamic, bits)
    )
    if held:
        integers = keep_in_float(opened, reference, integers, step.min_cosine, held)
    return integers, packed


def _code_bits(step: Quantize) -> int:
    """Bits of the codes on integer kernels. ONNX Runtime and torch change or refuse kernels whose sums saturate; OpenVINO does not."""
    return 8 if step.backend != "openvino" or backends.adds_bytes_exactly() else 7


def keep_in_float(
    opened, reference, found: dict[str, Int8Linear], floor: float, batches: list[dict]
) -> dict[str, Int8Linear]:
    """`found` without the layers that it helps most to leave in float, as few as bring the mean cosine of the embeddings
    of `batches` to `floor`; all of them are gone where it never does."""
    layers, aim = architecture.linears(registry.network(opened)), embed(reference, batches)

    def kept(names) -> float:
        with int8.computing(layers, {name: found[name] for name in names}):
            return mean_cosine(embed(opened, batches), aim)

    stay = list(found)
    if kept(stay) >= floor:
        return found
    for name in sorted(
        found, key=lambda name: kept([other for other in found if other != name]), reverse=True
    ):
        stay.remove(name)
        if kept(stay) >= floor:
            break
    return {name: found[name] for name in stay}


def _row(name, integer, packed, there: bool) -> dict:
    note = "" if integer or packed else "left in float"
    if integer and int(integer.codes.short().abs().max()) <= 64:
        note = "codes of 7 bits in 8: sums of two products saturate on a processor without VNNI"
    bits = 8 if integer else packed.bits if packed else 32
    row = {
        "name": name,
        "bits": bits,
        "error": integer.error if integer else None,
        "sparsity": 0.0,
        "note": note,
    }
    return (
        row
        if there
        else {**row, "note": "no part of the graph: the embedding does not depend on it"}
    )


def _bits(weight, integer, packed, step: Quantize) -> float:
    """Bits of a layer: codes, scales and what its inputs are rounded with."""
    if integer:
        return 8 * weight.numel() + 32 * (
            len(integer.scale) + 2 * (0 if integer.delta is None else len(integer.delta))
        )
    return (
        packed.stored_bits()
        if packed
        else weight.numel() * (16 if step.unquantized_dtype == "float16" else 32)
    )
