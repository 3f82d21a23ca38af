"""ONNX Runtime: a model as an ONNX graph, its layers on the integer products of its kernels. An optional extra.

The graph takes token numbers and an attention mask and gives embeddings or scores, pooling and what follows included; what
its layers become stands in `kerf.backends.onnx_layers`. bfloat16 is not here: there are no kernels for it on x86.

On x86 without VNNI or AMX the product of unsigned and signed bytes saturates in 16 bits; the session is told to take the
slower one of unsigned bytes there (session.x64quantprecision), so that every machine gives the same sums. It would take it
everywhere, and more than half as long again.
"""

from pathlib import Path

import numpy as np

from kerf.backends import adds_bytes_exactly
from kerf.backends.onnx_layers import OWN, constant, replace
from kerf.backends.onnx_layers import put_integers as put_integers
from kerf.backends.onnx_layers import put_packed as put_packed
from kerf.backends.onnx_layers import weights as weights
from kerf.core.errors import refuse

MODEL = "model.onnx"
INSTALL = "pip install onnxruntime==1.31.1 onnxscript==0.7.2"  # lib[onnxruntime]


def available() -> bool:
    """Whether the library is installed, and what writes its graphs."""
    from importlib.util import find_spec

    return all(map(find_spec, ("onnxruntime", "onnxscript")))


def convert(opened):
    """The graph of a SentenceTransformer or CrossEncoder in float32. Raises InputError for one that cannot be exported for every shape."""
    import torch

    from kerf.backends import conversion

    with conversion("onnxruntime", opened) as (whole, example):
        free = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)  # texts and tokens
        program = torch.onnx.export(
            whole,
            tuple(example.values()),
            input_names=list(example),
            output_names=["answers"],
            dynamic_shapes=dict.fromkeys(example, free),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    program.model.opset_imports[OWN] = 1
    return program.model


def settings(step) -> dict[str, str]:
    """Nothing: what a step asks for is in the graph."""
    return {}


def save(graph, folder: Path, half: bool) -> None:
    """Write graph and weights in one file; half: float weights as float16."""
    import onnx_ir
    from onnx_ir.passes import common

    for clean in (common.RemoveUnusedNodesPass(), common.ClearMetadataAndDocStringPass()):
        clean(graph)
    if half:
        _halve(graph)
    onnx_ir.save(graph, folder / MODEL)


def _halve(graph) -> None:
    """Float weights of the network in half the bytes; they are whole again when the graph is loaded."""
    import onnx_ir
    from onnx_ir.tape import Tape

    tape = Tape(graph.graph)
    for name, value in list(graph.graph.initializers.items()):
        if name.startswith("net.") and value.dtype == onnx_ir.DataType.FLOAT:
            small = constant(tape, name, value.const_value.numpy().astype(np.float16))
            replace(value, tape.op("Cast", [small], {"to": onnx_ir.DataType.FLOAT}))
            del graph.graph.initializers[name]
    graph.graph.sort()


def run(folder: Path, card: dict, threads: int):
    """The loaded model: input_ids, attention_mask and token_type_ids in, answers out; from any thread. Raises InputError when it cannot be loaded."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry(
        "session.x64quantprecision", "0" if adds_bytes_exactly() else "1"
    )
    try:
        session = onnxruntime.InferenceSession(
            str(folder / MODEL), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the library raises a dozen kinds, none with a base of its own
        raise refuse(
            "backend",
            "onnxruntime",
            f"a model that it loads ({str(error).strip().splitlines()[-1][-160:]})",
        ) from None

    taken = [each.name for each in session.get_inputs()]

    def answer(**given: np.ndarray) -> np.ndarray:
        return session.run(None, {name: given[name] for name in taken})[0]

    return answer
