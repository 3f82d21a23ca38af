"""ONNX Runtime (an optional extra): a model as an ONNX graph, pooling included, its layers on the library's integer kernels.

An integer layer gets its inputs through a QuantizeLinear and becomes a MatMulIntegerToFloat. A packed linear layer becomes a
MatMulNBits, which unpacks codes as it multiplies; packed word embeddings become a GatherBlockQuantized. The library has no
kernels for bfloat16 on x86. On x86 without VNNI or AMX, products of unsigned and signed bytes saturate at 16 bits:
session.x64quantprecision selects the slower product of unsigned bytes there, so that every machine gives the same sums.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np

from kerf.backends import adds_bytes_exactly, conversion, protocol, refusal
from kerf.backends.protocol import Int8Linear, IntegerLayers, Kernel, KernelStep, PackedLayers
from kerf.tensors.packing import pack

MODEL = "model.onnx"
INSTALL = "pip install onnxruntime==1.31.1 onnxscript==0.7.2"  # lib[onnxruntime]
CONTRIB = "com.microsoft"  # operators that the library adds to those of ONNX


def available() -> bool:
    """Whether the library is installed."""
    return all(map(importlib.util.find_spec, ("onnxruntime", "onnxscript")))


def convert(opened: Any) -> Any:
    """A float32 graph of an opened encoder or reranker. Raises InputError for a model that the library cannot read."""
    import torch

    with conversion("onnxruntime", opened) as (whole, example):
        dynamic = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)  # texts and tokens
        options: Any = {"dynamic_shapes": dict.fromkeys(example, dynamic)}
        options |= {"input_names": list(example), "output_names": ["answers"]}
        options |= {"dynamo": True, "optimize": False, "verbose": False}
        program: Any = torch.onnx.export(whole, tuple(example.values()), **options)
    program.model.opset_imports[CONTRIB] = 1
    return program.model


def weights(graph: Any) -> dict[str, list[Any]]:
    """The nodes that each weight is an input of."""
    nodes: dict[str, list[Any]] = {}
    for node in graph.graph:
        if node.op_type in ("MatMul", "Gemm", "Gather"):
            source = node.inputs[0 if node.op_type == "Gather" else 1]
            if source.producer() is not None and source.producer().op_type == "Transpose":
                source = source.producer().inputs[0]
            name = re.fullmatch(r"net\.(.*)\.weight", source.name or "")
            if source.is_initializer() and name:
                nodes.setdefault(name[1], []).append(node)
    return nodes


def put_integers(graph: Any, layers: IntegerLayers) -> None:
    """Replace layers (name -> Int8Linear) of the graph by integer kernels, in place."""
    from onnx_ir.convenience import replace_all_uses_with
    from onnx_ir.tape import Tape

    nodes, tape = weights(graph), Tape(graph.graph)
    one, zero = _constant(tape, "one", np.float32(1)), _constant(tape, "zero", np.uint8(0))
    inputs: dict[tuple, tuple] = {}  # layers that share an input share its bytes
    for name, layer in layers.items():
        bias = layer.bias if layer.low is None else layer.bias + layer.weight() @ layer.low
        bias = _constant(tape, f"{name}.added", bias.numpy())
        codes = _constant(tape, f"{name}.codes", layer.codes.numpy().T)
        scale = _constant(tape, f"{name}.scale", layer.scale.numpy())
        if layer.low is None:
            sums = layer.codes.numpy().sum(1, dtype=np.float32) * layer.scale.numpy()
            sums = _constant(tape, f"{name}.sums", sums)
        for node in nodes[name]:
            key = node.inputs[0], id(layer.low)
            if key not in inputs:
                units, *grid = _units(tape, name, node.inputs[0], layer)
                inputs[key] = tape.op("QuantizeLinear", [units, one, zero]), *grid
            units, *grid = inputs[key]
            operands = [units, codes, one, scale, zero, *([] if grid else [None, bias])]
            product = tape.op("MatMulIntegerToFloat", operands, domain=CONTRIB)
            if grid:
                low, delta = grid  # of each token
                shift = tape.op("Add", [tape.op("Mul", [low, sums]), bias])
                product = tape.op("Add", [tape.op("Mul", [product, delta]), shift])
            replace_all_uses_with(_with_bias(node), product)
    graph.graph.sort()


def _units(tape: Any, name: str, x: Any, layer: Int8Linear) -> list[Any]:
    """The input x of a layer in units of its grid; then, where each token has its own grid, low and delta."""
    if layer.low is not None and layer.delta is not None:
        units = _constant(tape, f"{name}.units", 1 / layer.delta.numpy())
        shift = _constant(tape, f"{name}.low", -(layer.low / layer.delta).numpy())
        return [tape.op("Add", [tape.op("Mul", [x, units]), shift])]
    last = _constant(tape, f"{name}.last", np.array([-1]))
    top = _constant(tape, f"{name}.top", np.float32(protocol.TOP_INPUT))
    smallest = _constant(tape, f"{name}.smallest", np.float32(protocol.SMALLEST))
    low, high = tape.op("ReduceMin", [x, last]), tape.op("ReduceMax", [x, last])
    delta = tape.op("Max", [tape.op("Div", [tape.op("Sub", [high, low]), top]), smallest])
    return [tape.op("Div", [tape.op("Sub", [x, low]), delta]), low, delta]


def _with_bias(node: Any) -> Any:
    """The output of a layer, after the bias that is added to its product."""
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add":
        add = uses[0].node
        if any(value.is_initializer() and value.name.endswith(".bias") for value in add.inputs):
            return add.outputs[0]
    return node.outputs[0]


def put_packed(graph: Any, layers: PackedLayers) -> None:
    """Codes of other widths than 2, 4 and 8 bits are stored as bytes."""
    from onnx_ir.convenience import replace_all_uses_with
    from onnx_ir.tape import Tape

    nodes, tape = weights(graph), Tape(graph.graph)
    for name, layer in layers.items():
        rows, columns = layer.codes.shape
        bits = int(layer.bits) if layer.bits in (2, 4, 8) else 8
        group = columns // layer.scale.shape[1]
        # Columns that share a scale in the library's layout: a power of two from 16 to 256 that divides the group.
        block = next((size for size in (256, 128, 64, 32) if group % size == 0), 16)
        blocks = -(-columns // block)
        grid = [part.float().expand(rows, -1) for part in (layer.scale, layer.zero_point)]
        scale, zero_point = (part.repeat_interleave(blocks // part.shape[1], 1) for part in grid)
        scales = _constant(tape, f"{name}.scale", scale.numpy())
        zeros = _packed(zero_point.byte().numpy(), bits, -blocks % (8 // bits))
        zeros = _constant(tape, f"{name}.zero", zeros)
        for node in nodes[name]:
            looked_up = node.op_type == "Gather"
            codes = _packed(layer.codes.numpy(), bits, 0 if looked_up else -columns % block)
            codes = codes if looked_up else codes.reshape(rows, blocks, -1)
            inputs = [_constant(tape, f"{name}.codes", codes), scales, zeros]
            options = {"bits": bits, "block_size": block}
            if looked_up:
                inputs.insert(1, node.inputs[1])
                options |= {"gather_axis": 0, "quantize_axis": 1}
            else:
                inputs.insert(0, node.inputs[0])
                if len(node.inputs) > 2:  # the bias of a Gemm; that of a MatMul is an Add after it
                    inputs += [None, node.inputs[2]]
                options |= {"K": columns, "N": rows, "accuracy_level": 1}  # 1: inputs stay float32
            kernel = "GatherBlockQuantized" if looked_up else "MatMulNBits"
            output = tape.op(kernel, inputs, options, domain=CONTRIB)
            replace_all_uses_with(node.outputs[0], output)
    graph.graph.sort()


def _packed(codes: np.ndarray, bits: int, padding: int) -> np.ndarray:
    """Codes (rows, columns) with columns of padding, as uint8 (rows, bytes)."""
    padded = np.pad(codes, ((0, 0), (0, padding)))
    return np.frombuffer(pack(padded, bits), np.uint8).reshape(len(codes), -1)


def _constant(tape: Any, name: str, value: Any) -> Any:
    import onnx_ir

    if known := tape.graph_like.initializers.get(
        f"kerf.{name}"
    ):  # of a layer that runs several times
        return known
    return tape.initializer(onnx_ir.tensor(np.ascontiguousarray(value), name=f"kerf.{name}"))


def settings(step: KernelStep) -> dict[str, str]:
    """The step's options in the library's own words, as `run` reads them from the manifest."""
    return {}


def save(graph: Any, folder: Path, half: bool) -> None:
    """Write the graph into `folder`; `half`: float weights as float16."""
    import onnx_ir
    from onnx_ir.convenience import replace_all_uses_with
    from onnx_ir.passes import common
    from onnx_ir.tape import Tape

    common.RemoveUnusedNodesPass()(graph)
    common.ClearMetadataAndDocStringPass()(graph)
    tape = Tape(graph.graph)
    for name, value in list(graph.graph.initializers.items()) if half else []:
        if name.startswith("net.") and value.dtype == onnx_ir.DataType.FLOAT:
            small = _constant(tape, name, value.const_value.numpy().astype(np.float16))
            replace_all_uses_with(value, tape.op("Cast", [small], {"to": onnx_ir.DataType.FLOAT}))
            del graph.graph.initializers[name]
    graph.graph.sort()
    onnx_ir.save(graph, folder / MODEL)


def run(folder: Path, card: dict, threads: int) -> Kernel:
    """The kernel of a saved candidate: arrays (texts, tokens) in, (texts, features) out. Raises InputError where it cannot run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    slower = "0" if adds_bytes_exactly() else "1"
    options.add_session_config_entry("session.x64quantprecision", slower)
    path, providers = str(folder / MODEL), ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # the library's exceptions have no common base
        raise refusal("onnxruntime", "a model that it loads", error) from None
    names = [value.name for value in session.get_inputs()]

    def kernel(**inputs: np.ndarray) -> np.ndarray:
        return session.run(None, {name: inputs[name] for name in names})[0]

    return kernel
