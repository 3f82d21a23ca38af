"""OpenVINO: an encoder or reranker as a graph, pooling included, compiled for this machine's CPU.

An integer layer gets its inputs through a FakeQuantize, which the compiler turns into bytes, and its codes as they
are; a packed weight stays codes, which the kernel unpacks as it multiplies.
"""

import importlib.util
import re
from pathlib import Path
from threading import local
from typing import Any

import numpy as np

from kerf.backends import adds_bytes_exactly, conversion, has_bfloat16, refusal
from kerf.backends.protocol import TOP_INPUT, IntegerLayers, Kernel, KernelStep, PackedLayers
from kerf.core.cache import machine
from kerf.core.errors import refuse
from kerf.tensors.packing import pack

MODEL = "openvino_model.xml"
INSTALL = "pip install openvino==2026.4.1"


def available() -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec("openvino") is not None


def convert(opened: Any) -> Any:
    """A float32 graph of an opened encoder or reranker. Raises InputError for a model that the library cannot read."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")  # convert_model sends telemetry
    with conversion("openvino", opened) as (whole, example):
        # Bound to a name, since the library keeps no reference of its own.
        traced = TorchScriptPythonDecoder(whole, example_input=example)
        return frontend.convert(frontend.load(traced))


def weights(graph: Any) -> dict[str, tuple[Any, int]]:
    """The node that each weight is an input of, and the index of that input."""
    inputs = {}
    for node in graph.get_ordered_ops():
        for index in range(2) if node.get_type_name() in ("MatMul", "Gather") else ():
            source = node.input(index).get_source_output().get_node()
            name = re.fullmatch(r"self\.net\.(.*)\.weight", source.get_friendly_name())
            if source.get_type_name() == "Constant" and name:
                inputs[name[1]] = (node, index)
    return inputs


def put_integers(graph: Any, layers: IntegerLayers) -> None:
    """Replace layers (name -> Int8Linear) of the graph by integer kernels, in place."""
    import openvino.opset13 as ops

    nodes, span = weights(graph), [np.float32(0), np.float32(TOP_INPUT)]
    quantized: dict[tuple, Any] = {}  # layers that share an input share its bytes
    for name, layer in layers.items():
        assert layer.low is not None and layer.delta is not None  # dynamic inputs are refused
        low, delta = layer.low.numpy(), layer.delta.numpy()
        product, index = nodes[name]
        source = product.input(1 - index).get_source_output()
        key = source.get_node().get_friendly_name(), source.get_index(), id(layer.low)
        if key not in quantized:
            units = ops.add(ops.multiply(source, 1 / delta), -low / delta)
            quantized[key] = ops.fake_quantize(units, *span, *span, 256)
        codes = ops.convert(ops.constant(layer.codes.numpy()), "f32")
        weight = ops.multiply(codes, layer.scale[:, None].numpy())
        product.input(1 - index).replace_source_output(quantized[key].output(0))
        product.input(index).replace_source_output(weight.output(0))
        bias = (layer.bias + layer.weight() @ layer.low).numpy()
        targets = list(product.output(0).get_target_inputs())
        if len(targets) == 1 and targets[0].get_node().get_type_name() == "Add":
            other = targets[0].get_node().input(1 - targets[0].get_index())
            if other.get_source_output().get_node().get_type_name() == "Constant":
                other.replace_source_output(ops.constant(bias).output(0))  # the layer's own bias
                continue
        added = ops.add(product, bias)
        for target in targets:
            target.replace_source_output(added.output(0))


def put_packed(graph: Any, layers: PackedLayers) -> None:
    """Replace weights (name -> Quantized, 8 or 4 bits) of the graph by packed codes, in place."""
    import openvino as ov
    import openvino.opset13 as ops

    nodes = weights(graph)
    for name, layer in layers.items():
        (rows, columns), groups = layer.codes.shape, layer.scale.shape[1]
        shape = [rows, groups, columns // groups] if groups > 1 else [rows, columns]
        codes = ops.constant(layer.codes.numpy().reshape(shape))
        if layer.bits == 4:
            nibbles = np.frombuffer(pack(layer.codes.numpy(), 4), np.uint8)
            codes = ops.constant(ov.Tensor(nibbles, shape, ov.Type.u4), shared_memory=False)
        grid = [part.float().expand(rows, -1) for part in (layer.zero_point, layer.scale)]
        zero_point, scale = (part.reshape(*shape[:-1], 1).numpy() for part in grid)
        weight = ops.multiply(ops.subtract(ops.convert(codes, "f32"), zero_point), scale)
        if groups > 1:
            weight = ops.reshape(weight, np.array([rows, columns]), False)
        node, index = nodes[name]
        node.input(index).replace_source_output(weight.output(0))


def settings(step: KernelStep) -> dict[str, str]:
    """The step's options in the library's own words, as `run` reads them from the manifest."""
    return {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[step.compute_dtype]}


def save(graph: Any, folder: Path, half: bool) -> None:
    """Write the graph into `folder`; `half`: float weights as float16."""
    import openvino as ov

    ov.save_model(graph, folder / MODEL, compress_to_fp16=half)


def run(folder: Path, card: dict, threads: int) -> Kernel:
    """Raises InputError also on a CPU whose sums of bytes saturate, for codes of 8 bits."""
    import openvino as ov

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **card["settings"]}
    if not has_bfloat16():  # OpenVINO reports support, and would emulate it
        options["INFERENCE_PRECISION_HINT"] = "f32"
    if card.get("code_bits") == 8 and not adds_bytes_exactly():
        accepted = "a processor with VNNI or AMX, as it was made on; sums of its bytes saturate here, so make it again on this one"
        raise refuse("path", str(folder), accepted)
    amx = any(flag.startswith("amx") for flag in machine()["flags"])
    if amx and options.get("INFERENCE_PRECISION_HINT") == "bf16":
        # With one thread, OpenVINO 2026.4 divides by zero as it compiles for AMX and ends the process.
        options["INFERENCE_NUM_THREADS"] = max(threads, 2)  # the report names these candidates
    try:
        compiled = ov.Core().compile_model(str(folder / MODEL), "CPU", options)
    except RuntimeError as error:
        raise refusal("openvino", "a model that it compiles", error) from None
    # An input may have a number beside its name.
    of_thread, names = local(), {name for port in compiled.inputs for name in port.names}

    def kernel(**inputs: np.ndarray) -> np.ndarray:
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        batch = {name: inputs[name] for name in names & inputs.keys()}
        return of_thread.request.infer(batch, share_inputs=True, share_outputs=False)[0]

    return kernel
