"""The quantize step of methods that run on real kernels: a model or candidate in, a candidate that a library runs out.

static: weights and inputs in 8 bits, input ranges from calibration text (`kerf.backends.int8`); dynamic: the same, with the range
of every token computed at run time. weight_only: weights in 8 or 4 bits by GPTQ, unpacked as they are multiplied. bfloat16:
everything is computed in 16 bits, where the processor has units for it. The step's `backend` names the library.
"""

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import Linear

from kerf import backends
from kerf.backends import int8, serve, tokens
from kerf.backends.protocol import BackendModule, Int8Linear, IntegerLayers, Kernel, PackedLayers
from kerf.calibration import activations
from kerf.calibration.candidate import StepContext, make_candidate
from kerf.calibration.heldout import embed, mean_cosine
from kerf.calibration.layer import Calibrated
from kerf.config import Calibration
from kerf.core.errors import InputError, refuse
from kerf.core.finite import check_finite
from kerf.core.memory import peak_rss_bytes
from kerf.core.scratch import scratch
from kerf.models import architecture, families, manifest, model_files, registry
from kerf.models.coverage import coverage
from kerf.quantize.compress import compress, embedding
from kerf.tensors.quantized import Quantized

Layers = Mapping[str, Int8Linear | Quantized]
TOLERANCE = 0.01  # of the outputs' norm: allowed difference of a float graph on another shape than it was traced with
# Allowed difference of an answer alone from the answer in a batch, relative to the longest answer. Float sums differ in their
# last bits with the shape of a batch. Where inputs are rounded to bytes or bfloat16, one value rounded up instead of down grows
# from layer to layer up to the rounding error itself: MiniLM reaches 0.05.
SAME, ROUNDED = 0.02, 0.2
LONG, LONGEST = 256, 1024  # tokens of the longest text: at least (if the model takes them), at most
HELD_BATCHES = 8  # of held-out text that decide which layers stay in float
SEVEN_BITS = "codes of 7 bits in 8: sums of two products saturate on a processor without VNNI"
NO_PART = "no part of the graph: the embedding does not depend on it"


def check(model: str, step: Any) -> None:
    """Refuse, before heavy work, another family of model, a library that is missing, and a reranker that reads more than its pair."""
    if step.min_cosine is None:
        registry.check_family(model, f"method: {step.method}", "encoder", "reranker")
    else:  # a mean cosine needs embeddings
        registry.check_family(model, f"method: {step.method} with min_cosine", "encoder")
    backends.backend(step.backend)
    folder = registry.resolve(model)
    if families.of(folder) is not families.cross_encoder:
        return
    if families.cross_encoder.reads_template(folder):
        accepted = "rtn or gptq for a reranker that reads pairs in a chat template, which no real kernel does"
        raise refuse("method", step.method, accepted)
    config = model_files.read_or_empty(folder / "config_sentence_transformers.json", dict)
    if prompt := config.get("default_prompt_name"):
        accepted = "a reranker without default_prompt_name for a real kernel"
        raise refuse("model", model, f"{accepted}; this one's is {prompt!r}")


def prepare(
    model: str, step: Any, calibration: Calibration, source: Path | str | None = None
) -> Path:
    """Directory of the candidate that a real kernel runs; made once; `check` came before."""
    context = StepContext("quantize", model, step, calibration, Path(source) if source else None)
    return make_candidate(context, _make, modules=backends.modules(step.backend))


def _make(context: StepContext, folder: Path) -> dict:
    started, step = time.perf_counter(), context.step
    library, opened = backends.backend(step.backend), context.open("cpu")
    network = registry.network(opened)
    manifest.copy_small_files(context.origin, folder)
    settings, texts = tokens.write(opened, folder), sequences(opened)
    tokens.check(opened, tokens.read(folder, settings))
    card, graph = context.card(network), library.convert(opened)
    check_shapes(library, graph, opened, step)
    linears, in_graph = architecture.linears(network), library.weights(graph)
    integers, packed = _quantized(context, opened)
    packed = {other: packed[name] for name in packed for other in architecture.tied(network, name)}
    bits: dict[str, float] = dict.fromkeys(integers, 8)
    if step.method == "bfloat16":
        bits = dict.fromkeys(linears, 16)
    bits |= {name: layer.bits for name, layer in packed.items()}
    bits = {name: width for name, width in bits.items() if name in in_graph}
    unused = dict.fromkeys(linears.keys() - {*in_graph}, NO_PART)
    covered = coverage(opened, network, bits, unused)
    library.put_integers(graph, {name: integers[name] for name in integers if name in in_graph})
    library.put_packed(graph, {name: packed[name] for name in packed if name in in_graph})
    library.save(graph, folder, half=step.unquantized_dtype == "float16")
    seconds, peak = time.perf_counter() - started, peak_rss_bytes()
    card |= {"backend": step.backend, "settings": library.settings(step)}
    card |= {"origin": registry.weights_digest(registry.resolve(context.model)), "tokens": settings}
    if families.of_opened(opened) is families.encoder:
        card["conventions"] = families.encoder.conventions(opened)
    card["code_bits"] = _code_bits(step) if integers else None
    manifest.write_manifest(folder, card)
    rounded = integers or step.compute_dtype == "bfloat16"
    run = serve.opened(folder, manifest.verify(folder)).run
    check_batches(run, texts, settings, ROUNDED if rounded else SAME)
    measured = {"compress_seconds": seconds, "compress_peak_rss_bytes": peak}
    report = _report(linears, {**packed, **integers}, in_graph, step)
    result = {**measured, "backend": step.backend, "sparsity": 0.0, "coverage": covered}
    return {**result, **report}


def sequences(opened: Any) -> tokens.Ids:
    """Token ids of texts from one token up to more than a sliding window on both sides, within the model's limit."""
    net = registry.network(opened)
    names = ("local_attention", "sliding_window", "attention_window")
    window = int(np.max(np.hstack([getattr(net.config, name, None) or 0 for name in names])))
    longest = min(max(LONG, 2 * window + 16), LONGEST, opened.max_seq_length or LONGEST)
    size = min(len(opened.tokenizer), net.get_input_embeddings().num_embeddings)
    ordinary = np.setdiff1d(np.arange(size), opened.tokenizer.all_special_ids)
    lengths = dict.fromkeys([1, min(3, longest), min(9, longest), longest // 2 or 1, longest])
    generator = np.random.default_rng(0)
    return [generator.choice(ordinary, length).tolist() for length in lengths]


@torch.no_grad()
def check_shapes(library: BackendModule, graph: Any, opened: Any, step: Any) -> None:
    """Refuse a graph that is right only for the number and length of texts that it was traced with."""
    if graph is opened:
        return
    pad = opened.tokenizer.pad_token_id or 0
    batch = tokens.batch(sequences(opened), pad, opened.max_seq_length)
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
        accepted = f"a model that it runs; {backends.ANY_MODEL}"
        raise backends.refusal(step.backend, accepted, error) from error
    if not same:
        accepted = "a model whose graph does not depend on the number of texts and tokens"
        accepted += f"; this one's does, and {backends.ANY_MODEL}"
        raise refuse("backend", step.backend, accepted)


def check_batches(run: Kernel, texts: tokens.Ids, settings: tokens.Settings, same: float) -> None:
    """Raise ValueError for a kernel whose answer to a text depends on the batch, or is NaN or infinite.

    texts: their token ids, the longest last; same: SAME or ROUNDED.
    """
    pad, most = settings["pad"], settings["max_length"]
    together = run(**tokens.batch(texts, pad, most))
    alone = np.concatenate([run(**tokens.batch([text], pad, most)) for text in texts])
    for rows, how in ((alone, "alone"), (together, "beside the others")):
        check_finite(rows, [f"{len(text)} tokens, {how}" for text in texts], "the kernel")
    longest = np.linalg.norm(alone, axis=1).max().clip(1e-12)
    difference = np.linalg.norm(together - alone, axis=1) / longest
    worst = int(difference.argmax())
    if difference[worst] > same:
        raise ValueError(
            f"the kernel answers a text of {len(texts[worst])} tokens otherwise alone than beside one of {len(texts[-1])}: "
            f"{difference[worst]:.3f} of the longest answer apart, where {same} is accepted"
        )


def _quantized(context: StepContext, opened: Any) -> tuple[IntegerLayers, PackedLayers]:
    """The layers that run on integer kernels, and the packed ones, by name."""
    step, family, reference = context.step, families.of_opened(opened), context.open("cpu")
    net, batches = registry.network(opened), family.batches(opened, context.calibration)
    groups = activations.groups_of(net, batches[0])
    text = Calibrated(net, registry.network(reference), groups, batches)
    if step.method == "bfloat16":
        return {}, {}
    if step.method == "weight_only":
        return {}, {layer.name: layer.quantized for layer in compress(text, step.gptq(), {})}
    packed = {}
    for name, module in architecture.embeddings(net).items() if step.embedding_bits() < 32 else ():
        packed[name] = embedding(name, module, step)
        module.weight.data = packed[name].dequantize()  # before the layers, which all read them
    held = []  # read before heavy work, since there may be no text left
    if step.min_cosine is not None:
        held = family.held_batches(reference, context.calibration)[:HELD_BATCHES]
    integers: IntegerLayers = int8.integers(text, step.method == "dynamic", _code_bits(step))
    if held:
        integers = keep_in_float(opened, reference, integers, step.min_cosine, held)
    return integers, packed


def _code_bits(step: Any) -> int:
    """Bits of codes on integer kernels. ONNX Runtime and torch avoid kernels whose sums saturate; OpenVINO does not."""
    return 8 if step.backend != "openvino" or backends.adds_bytes_exactly() else 7


def keep_in_float(
    opened: Any, reference: Any, integers: IntegerLayers, min_cosine: float, batches: list[dict]
) -> IntegerLayers:
    """`integers` without the fewest layers that have to stay in float for the mean cosine on `batches` to reach `min_cosine`.

    Layers are left in float in order of how much each one alone improves the cosine; all of them where it is never reached.
    """
    layers, embeddings = architecture.linears(registry.network(opened)), embed(reference, batches)

    def cosine(names: list[str]) -> float:
        with int8.emulated(layers, {name: integers[name] for name in names}):
            return mean_cosine(embed(opened, batches), embeddings)

    stay = list(integers)
    if cosine(stay) < min_cosine:
        without = {name: cosine([other for other in stay if other != name]) for name in stay}
        for name in sorted(without, key=lambda name: without[name], reverse=True):
            stay.remove(name)
            if cosine(stay) >= min_cosine:
                break
    return {name: integers[name] for name in stay}


def _report(
    linears: dict[str, Linear], quantized: Layers, in_graph: Collection[str], step: Any
) -> dict[str, Any]:
    """The row of each layer, and the mean bits of a weight with scales and input ranges, over the layers in the graph."""
    rows, stored, count = [], 0.0, 0
    for name, layer in linears.items():
        weights, value = layer.weight.numel(), quantized.get(name)
        bits, error, note = 32.0, None, "left in float"
        size = weights * (16.0 if step.unquantized_dtype == "float16" else 32.0)
        if isinstance(value, Int8Linear):
            ranges = 0 if value.delta is None else 2 * len(value.delta)
            bits, error, size = 8, value.error, 8 * weights + 32 * (len(value.scale) + ranges)
            note = SEVEN_BITS if int(value.codes.short().abs().max()) <= 64 else ""
        elif value:
            bits, note, size = value.bits, "", value.stored_bits()
        if name in in_graph:
            stored, count = stored + size, count + weights
        else:
            note = NO_PART
        rows.append({"name": name, "bits": bits, "error": error, "sparsity": 0.0, "note": note})
    return {"linear_bits": stored / count, "layers": rows}
