"""What a layer becomes in an ONNX graph that ONNX Runtime runs.

A linear layer with an `Int8Linear` gets its inputs rounded by a QuantizeLinear that is behind its ranges, of columns or of
tokens, and a MatMulIntegerToFloat; one with a `Quantized` becomes a MatMulNBits, which unpacks codes as it multiplies,
and word embeddings a GatherBlockQuantized.
"""

import numpy as np

from kerf.tensors.packing import pack

OWN = "com.microsoft"  # operators that the library adds to those of ONNX


def weights(graph) -> dict[str, list]:
    """The nodes that a linear layer's or word embedding's weight goes in, by name."""
    found: dict[str, list] = {}
    for node in graph.graph:
        if node.op_type in ("MatMul", "Gemm", "Gather"):
            source = node.inputs[0 if node.op_type == "Gather" else 1]
            if source.producer() is not None and source.producer().op_type == "Transpose":
                source = source.producer().inputs[0]
            if (
                source.is_initializer()
                and source.name.startswith("net.")
                and source.name.endswith(".weight")
            ):
                found.setdefault(
                    source.name.removeprefix("net.").removesuffix(".weight"), []
                ).append(node)
    return found


def put_integers(graph, found: dict) -> None:
    """Put the layers of `found` (name -> `kerf.backends.int8.Int8Linear`) on integer kernels, in place."""
    from onnx_ir.tape import Tape

    there, tape, rounded = weights(graph), Tape(graph.graph), {}
    one, zero = constant(tape, "one", np.float32(1)), constant(tape, "zero", np.uint8(0))
    for name, layer in found.items():
        scale, whole = layer.scale.numpy(), layer.codes.numpy()
        codes = constant(tape, f"{name}.codes", whole.T)
        if layer.low is not None:
            bias = (layer.bias + layer.weight() @ layer.low).numpy()
            parts = (
                constant(tape, f"{name}.scale", scale),
                zero,
                None,
                constant(tape, f"{name}.added", bias),
            )
        else:
            parts = constant(tape, f"{name}.scale", scale), zero
            sums, bias = (
                constant(tape, f"{name}.{part}", value)
                for part, value in (
                    ("sums", whole.sum(1, dtype=np.float32) * scale),
                    ("added", layer.bias.numpy()),
                )
            )
        for node in there[name]:
            x = node.inputs[0]
            key = x, id(layer.low)
            if key not in rounded:  # layers that share an input share its bytes
                rounded[key] = _rounded(tape, name, x, layer, one, zero)
            units, low, delta = rounded[key]
            product = tape.op("MatMulIntegerToFloat", [units, codes, one, *parts], domain=OWN)
            if layer.low is None:
                moved = tape.op("Add", [tape.op("Mul", [low, sums]), bias])
                product = tape.op("Add", [tape.op("Mul", [product, delta]), moved])
            replace(_with_bias(node), product)
    graph.graph.sort()


def _rounded(tape, name: str, x, layer, one, zero) -> tuple:
    """The bytes of an input, and what each token's begin at and are apart, where they are not those of columns."""
    from kerf.backends.int8 import SMALLEST, TOP_INPUT

    if layer.low is not None:
        units = tape.op("Mul", [x, constant(tape, f"{name}.units", 1 / layer.delta.numpy())])
        units, low, delta = (
            tape.op(
                "Add", [units, constant(tape, f"{name}.low", -(layer.low / layer.delta).numpy())]
            ),
            None,
            None,
        )
    else:
        last = constant(tape, f"{name}.last", np.array([-1]))
        low, high = (tape.op(kind, [x, last]) for kind in ("ReduceMin", "ReduceMax"))
        delta = tape.op(
            "Div",
            [tape.op("Sub", [high, low]), constant(tape, f"{name}.top", np.float32(TOP_INPUT))],
        )
        delta = tape.op("Max", [delta, constant(tape, f"{name}.smallest", np.float32(SMALLEST))])
        units = tape.op("Div", [tape.op("Sub", [x, low]), delta])
    return tape.op("QuantizeLinear", [units, one, zero]), low, delta


def put_packed(graph, found: dict) -> None:
    """Keep the weights of `found` (name -> Quantized) packed: linear layers at 4 or 8 bits; word embeddings, in whole bytes
    where their width does not divide 8."""
    from onnx_ir.tape import Tape

    there, tape = weights(graph), Tape(graph.graph)
    for name, value in found.items():
        rows, columns = value.codes.shape
        bits = value.bits if value.bits in (2, 4, 8) else 8
        block = _block(columns // value.scale.shape[1])
        blocks = -(-columns // block)
        scale, zero = (
            part.float().expand(rows, -1).repeat_interleave(blocks // part.shape[1], 1).numpy()
            for part in (value.scale, value.zero_point)
        )
        zero = np.pad(zero.astype(np.uint8), ((0, 0), (0, -blocks % (8 // bits))))
        codes = np.pad(value.codes.numpy(), ((0, 0), (0, blocks * block - columns)))
        for node in there[name]:
            looked_up = node.op_type == "Gather"
            whole = _bytes(codes[:, :columns] if looked_up else codes, bits)
            parts = [
                constant(
                    tape, f"{name}.codes", whole if looked_up else whole.reshape(rows, blocks, -1)
                ),
                constant(tape, f"{name}.scale", scale),
                constant(tape, f"{name}.zero", _bytes(zero, bits)),
            ]
            if looked_up:
                options = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
                made = tape.op(
                    "GatherBlockQuantized",
                    [parts[0], node.inputs[1], *parts[1:]],
                    options,
                    domain=OWN,
                )
            else:
                options = {
                    "K": columns,
                    "N": rows,
                    "bits": bits,
                    "block_size": block,
                    "accuracy_level": 1,
                }  # 1: inputs stay float32
                bias = (
                    [None, node.inputs[2]] if len(node.inputs) > 2 else []
                )  # a Gemm has its own, a MatMul an Add behind it
                made = tape.op("MatMulNBits", [node.inputs[0], *parts, *bias], options, domain=OWN)
            replace(node.outputs[0], made)
    graph.graph.sort()


def _block(columns: int) -> int:
    """Neighbours that share a scale in the library's layout: a power of two from 16 to 256 that fits in a group."""
    return next((size for size in (256, 128, 64, 32) if columns % size == 0), 16)


def _bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (rows, columns) packed, uint8 (rows, bytes)."""
    return np.frombuffer(pack(codes, bits), np.uint8).reshape(len(codes), -1)


def _with_bias(node):
    """What a layer puts out, behind the bias that is added to its product."""
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add":
        add = uses[0].node
        if any(each.is_initializer() and each.name.endswith(".bias") for each in add.inputs):
            return add.outputs[0]
    return node.outputs[0]


def replace(old, new) -> None:
    """Let everything that took one value take another."""
    from onnx_ir.convenience import replace_all_uses_with

    replace_all_uses_with(old, new)


def constant(tape, name: str, value):
    """A value of the graph's own, from an array."""
    import onnx_ir

    return tape.initializer(onnx_ir.tensor(np.ascontiguousarray(value), name=f"kerf.{name}"))
