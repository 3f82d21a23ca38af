"""The quantize step of methods that run on real kernels: a model or candidate in, a candidate that a library runs out.

static: weights and inputs in 8 bits, input ranges from calibration text (`kerf.backends.int8`); dynamic: the same, with the range
of every token computed at run time. weight_only: weights in 8 or 4 bits by GPTQ, unpacked as they are multiplied. bfloat16:
everything is computed in 16 bits, where the processor has units for it. The step's `backend` names the library.
"""

import time
from pathlib import Path
from typing import Any

import torch

from kerf import backends
from kerf.backends import int8, mixed, serve, tokens
from kerf.backends.int8 import Int8Linear
from kerf.backends.protocol import BackendModule
from kerf.calibration import activations
from kerf.calibration.candidate import StepContext, make_candidate
from kerf.calibration.heldout import embed, mean_cosine
from kerf.calibration.layer import Calibrated
from kerf.config import Calibration
from kerf.core.errors import InputError, refuse
from kerf.core.memory import peak_rss_bytes
from kerf.core.scratch import scratch
from kerf.models import architecture, families, manifest, registry
from kerf.quantize.compress import compress, embedding
from kerf.tensors.quantized import Quantized

TOLERANCE = 0.01  # of the outputs' norm: allowed difference of a float graph on another shape than it was traced with
HELD_BATCHES = 8  # of held-out text that decide which layers stay in float
SEVEN_BITS = "codes of 7 bits in 8: sums of two products saturate on a processor without VNNI"
NO_PART = "no part of the graph: the embedding does not depend on it"


def check(model: str, step: Any) -> None:
    """Refuse, before heavy work, another family of model, a library that is missing, and a model that transforms texts first."""
    if step.min_cosine is None:
        registry.check_kind(model, f"method: {step.method}", "encoder", "reranker")
    else:  # a mean cosine needs embeddings
        registry.check_kind(model, f"method: {step.method} with min_cosine", "encoder")
    backends.backend(step.backend)
    serve.check(model, registry.resolve(model))


def prepare(
    model: str, step: Any, calibration: Calibration, source: Path | str | None = None
) -> Path:
    """Directory of the candidate that a real kernel runs; made once; `check` came before."""
    context = StepContext("quantize", model, step, calibration, Path(source) if source else None)
    return make_candidate(context, _make, modules=backends.modules(step.backend))


def _make(context: StepContext, folder: Path) -> dict:
    step, library = context.step, backends.backend(context.step.backend)
    started = time.perf_counter()
    opened = context.open("cpu")
    network = registry.network(opened)
    manifest.copy_small_files(context.origin, folder)
    token_settings, sequences = tokens.write(opened, folder), mixed.sequences(opened)
    tokens.check(opened, tokens.read(folder, token_settings))
    graph = library.convert(opened)
    check_shapes(library, graph, opened, step)
    linears, in_graph = architecture.linears(network), library.weights(graph)
    integers, packed = _quantized(context, opened)
    library.put_integers(
        graph, {name: value for name, value in integers.items() if name in in_graph}
    )
    library.put_packed(graph, {name: value for name, value in packed.items() if name in in_graph})
    library.save(graph, folder, half=step.unquantized_dtype == "float16")
    measured = {
        "compress_seconds": time.perf_counter() - started,
        "compress_peak_rss_bytes": peak_rss_bytes(),
    }
    card = {
        **context.card(network),
        "origin": registry.weights_digest(registry.resolve(context.model)),
        "backend": step.backend,
        "settings": library.settings(step),
        "tokens": token_settings,
        "code_bits": _code_bits(step) if integers else None,
    }
    manifest.write_manifest(folder, card)
    rounded = integers or step.compute_dtype == "bfloat16"
    mixed.check(
        serve.opened(folder, manifest.verify(folder)).run,
        sequences,
        token_settings["pad"],
        token_settings["max_length"],
        mixed.ROUNDED if rounded else mixed.SAME,
    )
    rows = [_row(name, integers.get(name), packed.get(name), name in in_graph) for name in linears]
    weights = {name: layer.weight for name, layer in linears.items() if name in in_graph}
    bits = [
        _bits(weight, integers.get(name), packed.get(name), step)
        for name, weight in weights.items()
    ]
    count = sum(weight.numel() for weight in weights.values())
    return {
        **measured,
        "backend": step.backend,
        "linear_bits": sum(bits) / count,
        "sparsity": 0.0,
        "layers": rows,
    }


@torch.no_grad()
def check_shapes(library: BackendModule, graph: Any, opened: Any, step: Any) -> None:
    """Refuse a graph that is right only for the number and length of texts that it was traced with."""
    if graph is opened:
        return
    pad = opened.tokenizer.pad_token_id or 0
    batch = mixed.batch(mixed.sequences(opened), pad, opened.max_seq_length)
    names = families.of_opened(opened).inputs(opened)
    reference = families.whole(opened)(*(torch.from_numpy(batch[name]) for name in names))
    try:
        with scratch() as folder:
            library.save(graph, folder, half=False)
            settings = library.settings(step.model_copy(update={"compute_dtype": "float32"}))
            outputs = torch.from_numpy(library.run(folder, {"settings": settings}, 1)(**batch))
        same = outputs.shape == reference.shape
        same = same and bool((outputs - reference).norm() < TOLERANCE * reference.norm())
    except InputError:
        raise
    except Exception as error:  # the libraries raise a dozen kinds
        cause = str(error).strip().splitlines()[-1][-160:]
        raise refuse("backend", step.backend, f"a model that it runs ({cause})") from error
    if not same:
        accepted = (
            "a model whose graph does not depend on the number of texts and tokens; this one's does"
        )
        raise refuse("backend", step.backend, accepted)


def _quantized(
    context: StepContext, opened: Any
) -> tuple[dict[str, Int8Linear], dict[str, Quantized]]:
    """The layers that run on integer kernels, and the packed ones, by name."""
    step, family = context.step, families.of_opened(opened)
    reference = context.open("cpu")
    net, reference_net = registry.network(opened), registry.network(reference)
    batches = family.batches(opened, context.calibration)
    groups = activations.groups_of(net, batches[0])
    text = Calibrated(net, reference_net, groups, batches)
    if step.method == "weight_only":
        return {}, {layer.name: layer.quantized for layer in compress(text, step.gptq(), {})}
    packed = {}
    if step.embedding_bits() < 32 and step.method != "bfloat16":
        for name, module in architecture.embeddings(net).items():
            packed[name] = embedding(name, module, step)
            module.weight.data = packed[name].dequantize()  # before the layers, which all read them
    if step.method == "bfloat16":
        return {}, packed
    held = []  # read before heavy work, since there may be no text left
    if step.min_cosine is not None:
        held = family.held_batches(reference, context.calibration)[:HELD_BATCHES]
    dynamic = step.method == "dynamic"
    integers = int8.integers(net, reference_net, groups, batches, dynamic, _code_bits(step))
    if held:
        integers = keep_in_float(opened, reference, integers, step.min_cosine, held)
    return integers, packed


def _code_bits(step: Any) -> int:
    """Bits of codes on integer kernels. ONNX Runtime and torch avoid kernels whose sums saturate; OpenVINO does not."""
    return 8 if step.backend != "openvino" or backends.adds_bytes_exactly() else 7


def keep_in_float(
    opened: Any,
    reference: Any,
    integers: dict[str, Int8Linear],
    min_cosine: float,
    batches: list[dict],
) -> dict[str, Int8Linear]:
    """`integers` without the fewest layers that have to stay in float for the mean cosine on `batches` to reach `min_cosine`.

    Layers are left in float in order of how much each one alone improves the cosine; all of them where it is never reached.
    """
    layers, embeddings = architecture.linears(registry.network(opened)), embed(reference, batches)

    def cosine(names: list[str]) -> float:
        with int8.computing(layers, {name: integers[name] for name in names}):
            return mean_cosine(embed(opened, batches), embeddings)

    stay = list(integers)
    if cosine(stay) >= min_cosine:
        return integers
    without = {name: cosine([other for other in integers if other != name]) for name in integers}
    for name in sorted(without, key=lambda name: without[name], reverse=True):
        stay.remove(name)
        if cosine(stay) >= min_cosine:
            break
    return {name: integers[name] for name in stay}


def _row(name: str, integer: Int8Linear | None, packed: Quantized | None, in_graph: bool) -> dict:
    bits, error, note = 32.0, None, "left in float"
    if integer:
        bits, error = 8, integer.error
        note = SEVEN_BITS if int(integer.codes.short().abs().max()) <= 64 else ""
    elif packed:
        bits, note = packed.bits, ""
    note = note if in_graph else NO_PART
    return {"name": name, "bits": bits, "error": error, "sparsity": 0.0, "note": note}


def _bits(
    weight: torch.Tensor, integer: Int8Linear | None, packed: Quantized | None, step: Any
) -> float:
    """Bits of a layer: codes, scales and the ranges of its inputs."""
    if integer:
        ranges = 0 if integer.delta is None else 2 * len(integer.delta)
        return 8 * weight.numel() + 32 * (len(integer.scale) + ranges)
    if packed:
        return packed.stored_bits()
    return weight.numel() * (16 if step.unquantized_dtype == "float16" else 32)
