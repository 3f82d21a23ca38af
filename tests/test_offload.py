"""Parking: the same values from a file, no anonymous memory, and no page given out twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kerf.calibration import offload
from kerf.calibration.offload import park, trim
from kerf.calibration.sequential import layer_inputs
from kerf.core.memory import anonymous_bytes as anonymous


@pytest.mark.parametrize("shape", [(3,), (4, 5), (0, 3), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_shape_and_dtype_stay(shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    before = tensor.clone()
    assert park(tensor) is tensor
    assert torch.equal(tensor, before) and (tensor.dtype, tensor.shape) == (
        before.dtype,
        before.shape,
    )


def test_a_transposed_tensor_keeps_its_values():
    tensor = torch.arange(12.0).view(3, 4).T
    before = tensor.clone()
    assert torch.equal(park(tensor), before)


def test_pages_are_not_given_out_while_a_view_of_them_lives():
    first = park(torch.full((777,), 1.0))
    view, place = first[5:9], first.data_ptr()
    del first
    second = park(torch.full((777,), 2.0))
    assert view.tolist() == [1.0] * 4 and second.data_ptr() != place
    del view
    third = park(torch.full((777,), 3.0))
    assert third.data_ptr() == place and second[0] == 2


def parked() -> int:
    """Bytes of anonymous memory that 160 MB of parked tensors take."""
    before, kept = anonymous(), []
    for _ in range(40):
        kept.append(park(torch.ones(1 << 20)))  # 4 MiB each
    trim()
    return anonymous() - before


def waiting() -> int:
    """Bytes of anonymous memory that 128 batches take at most while they wait at a layer."""
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(256, 256), "b": torch.nn.Linear(256, 256)})

    def forward(x, attention_mask):
        y = net["a"](x)
        return net["b"](y) + y + x  # both are needed again after b

    net.forward = forward
    rows = [torch.full((1, 512), index % 7) for index in range(128)]
    batches = [
        {"x": torch.randn(1, 512, 256), "attention_mask": torch.ones_like(row)} for row in rows
    ]  # 64 MiB
    for batch in batches:
        park(batch["x"])
    before, peak = anonymous(), 0
    for _, inputs in layer_inputs(net, [["a"], ["b"]], batches):
        for _ in inputs:
            peak = max(peak, anonymous())
    return peak - before


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells anonymous memory apart"
)
@pytest.mark.parametrize("measured", [parked, waiting])
def test_what_is_parked_and_what_waits_take_no_anonymous_memory(measured):
    # In a process of its own, whose memory no earlier test has used.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"import test_offload; print(test_offload.{measured.__name__}())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 24e6  # the outputs of layer `a` alone are 64 MiB


def test_memory_is_given_back_only_after_it_grew(monkeypatch):
    now, given = [0], []
    library = type("libc", (), {"malloc_trim": staticmethod(lambda _: given.append(now[0]))})
    monkeypatch.setattr(offload.sys, "platform", "linux")
    monkeypatch.setattr(offload.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(offload, "anonymous_bytes", lambda: now[0] * 2**20)
    monkeypatch.setattr(offload, "_least", [0])
    for now[0] in (10, 70, 100, 140, 20, 90):  # 20: the work is done, and other work begins
        trim()
    assert given == [70, 140, 90]
