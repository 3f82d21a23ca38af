"""OpenVINO: an encoder or reranker as a graph, its layers put on integer kernels, compiled for this machine's processor.

The graph takes token numbers and an attention mask, of pairs also which text a token is of, and gives embeddings or
scores, pooling and what follows included. A
linear layer with an `Int8Linear` gets its inputs through a FakeQuantize, which the compiler makes into bytes, and its
codes as they are; one with a `Quantized` keeps packed codes, which the kernel unpacks as it multiplies.
"""

from pathlib import Path

import numpy as np

from kerf.backends import adds_bytes_exactly
from kerf.core.cache import machine
from kerf.core.errors import refuse

MODEL = "openvino_model.xml"
INSTALL = "pip install openvino==2026.4.1"


def available() -> bool:
    """Whether the library is installed."""
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def convert(opened):
    """The graph of a SentenceTransformer or CrossEncoder in float32. Raises InputError for one that cannot be traced or holds unknown operators."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from kerf.backends import conversion

    frontend = FrontEndManager().load_by_framework(
        "pytorch"
    )  # convert_model of the library would send telemetry
    with conversion("openvino", opened) as (whole, example):
        traced = TorchScriptPythonDecoder(
            whole, example_input=example
        )  # the library keeps no reference of its own
        return frontend.convert(frontend.load(traced))


def weights(graph) -> dict[str, tuple]:
    """Where the weight of each linear layer and word embedding goes in: name -> (node, input)."""
    found = {}
    for node in graph.get_ordered_ops():
        for place in range(2) if node.get_type_name() in ("MatMul", "Gather") else ():
            source = node.input(place).get_source_output().get_node()
            name = source.get_friendly_name()
            if (
                source.get_type_name() == "Constant"
                and name.startswith("self.net.")
                and name.endswith(".weight")
            ):
                found[name.removeprefix("self.net.").removesuffix(".weight")] = (node, place)
    return found


def put_integers(graph, found: dict) -> None:
    """Put the layers of `found` (name -> `kerf.backends.int8.Int8Linear`) on integer kernels, in place."""
    import openvino.opset13 as ops

    rounded: dict[tuple, object] = {}
    there = weights(graph)
    for name, layer in found.items():
        product, place = there[name]
        source = product.input(1 - place).get_source_output()
        key = source.get_node().get_friendly_name(), source.get_index(), id(layer.low)
        if key not in rounded:  # layers that share an input share its bytes
            units = ops.multiply(source, _constant(1 / layer.delta.numpy()))
            units = ops.add(units, _constant(-(layer.low / layer.delta).numpy()))
            span = [_constant(0.0), _constant(255.0)]
            rounded[key] = ops.fake_quantize(units, *span, *span, 256)
        codes = ops.convert(ops.constant(layer.codes.numpy()), "f32")
        weight = ops.multiply(codes, _constant(layer.scale[:, None].numpy()))
        product.input(1 - place).replace_source_output(rounded[key].output(0))
        product.input(place).replace_source_output(weight.output(0))
        _set_bias(product, (layer.bias + layer.weight() @ layer.low).numpy())


def put_packed(graph, found: dict) -> None:
    """Keep the weights of `found` (name -> Quantized at 4 or 8 bits) packed; linear layers and word embeddings."""
    import openvino as ov
    import openvino.opset13 as ops

    there = weights(graph)
    for name, quantized in found.items():
        node, place = there[name]
        rows, groups = quantized.codes.shape[0], quantized.scale.shape[1]
        shape = (
            [rows, groups, quantized.codes.shape[1] // groups]
            if groups > 1
            else list(quantized.codes.shape)
        )
        codes = quantized.codes.numpy().reshape(shape)
        if quantized.bits == 4:
            codes = ops.constant(ov.Tensor(_nibbles(codes), shape, ov.Type.u4), shared_memory=False)
        else:
            codes = ops.constant(codes)
        parts = [
            each.float().expand(rows, -1).numpy().reshape(*shape[:-1], 1)
            for each in (quantized.zero_point, quantized.scale)
        ]
        value = ops.subtract(ops.convert(codes, "f32"), _constant(parts[0]))
        value = ops.multiply(value, _constant(parts[1]))
        if groups > 1:
            value = ops.reshape(
                value, ops.constant(np.array(quantized.codes.shape, np.int64)), False
            )
        node.input(place).replace_source_output(value.output(0))


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes of four bits, two a byte, the first in the low half."""
    flat = codes.reshape(-1, 2)
    return (flat[:, 0] | flat[:, 1] << 4).astype(np.uint8)


def _set_bias(product, bias: np.ndarray) -> None:
    """Give a layer a bias, in the place of the one it has."""
    import openvino.opset13 as ops

    targets = list(product.output(0).get_target_inputs())
    if len(targets) == 1 and targets[0].get_node().get_type_name() == "Add":
        add = targets[0].get_node()
        other = 1 - targets[0].get_index()
        if add.input(other).get_source_output().get_node().get_type_name() == "Constant":
            add.input(other).replace_source_output(_constant(bias).output(0))
            return
    added = ops.add(product, _constant(bias))
    for target in targets:
        target.replace_source_output(added.output(0))


def _constant(value):
    import openvino.opset13 as ops

    return ops.constant(np.ascontiguousarray(value, np.float32))


def settings(step) -> dict[str, str]:
    """OpenVINO's own names for what a step asks for."""
    return {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[step.compute_dtype]}


def save(graph, folder: Path, half: bool) -> None:
    """Write graph and weights; half: float weights as float16."""
    import openvino as ov

    ov.save_model(graph, folder / MODEL, compress_to_fp16=half)


def run(folder: Path, card: dict, threads: int):
    """The compiled model: input_ids, attention_mask and token_type_ids in, answers out; from any thread. Raises InputError when it cannot be compiled."""
    from threading import local

    import openvino as ov

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **card["settings"]}
    if not any(
        "bf16" in flag for flag in machine()["flags"]
    ):  # it would be emulated, a hundred times slower; OpenVINO says it has it
        options["INFERENCE_PRECISION_HINT"] = "f32"
    if card.get("code_bits") == 8 and not adds_bytes_exactly():
        raise refuse(
            "path",
            str(folder),
            "a processor with VNNI or AMX, as it was made on; sums of its bytes saturate here, so make it again on this one",
        )
    try:
        compiled = ov.Core().compile_model(str(folder / MODEL), "CPU", options)
    except RuntimeError as error:
        raise refuse(
            "backend",
            "openvino",
            f"a model that it compiles ({str(error).strip().splitlines()[-1][:160]})",
        ) from None
    own, taken = local(), {port.any_name for port in compiled.inputs}

    def answer(**given: np.ndarray) -> np.ndarray:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return own.request.infer(
            {name: given[name] for name in taken}, share_inputs=True, share_outputs=False
        )[0]

    return answer
