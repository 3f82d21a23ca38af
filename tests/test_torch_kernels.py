"""The torch kernels that serve other devices than the CPU, on CPU tensors against the numba kernels."""

import os
import subprocess
import sys

import pytest
import torch

from kerf.calibration.hessian import inverse_factor, output_error
from kerf.config import STEPS, parse
from kerf.core import device
from kerf.core.errors import InputError
from kerf.prune.sparsegpt import sparsegpt
from kerf.prune.wanda import coordinate_descent
from kerf.quantize.compress import one_layer
from kerf.tensors import kernels, numba_kernels, torch_kernels
from kerf.workbench.cli import main

STEPS_BY_NAME = {
    "rtn": {"method": "rtn", "bits": 3, "group_size": 32, "clip": "mse"},
    "rtn ternary": {"method": "rtn", "bits": 1.6, "clip": "hessian"},
    "rtn tensor": {"method": "rtn", "bits": 2, "granularity": "tensor", "clip": "mse"},
    "gptq": {"method": "gptq", "bits": 4, "group_size": 64, "clip": "hessian"},
    "gptq 2 bits": {"method": "gptq", "bits": 2, "group_size": 32, "clip": "hessian"},
    "gptq as it stands": {"method": "gptq", "bits": 3, "act_order": False, "sweeps": 0},
    "gptq sparse": {"method": "gptq", "bits": 4, "pattern": "2:4", "clip": "mse"},
}


def layer(rows=192, columns=256, seed=0):
    """A linear layer and the second moments of correlated inputs with outlier channels."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    X = torch.randn(2048, columns, generator=generator) @ (torch.eye(columns) + mix)
    X[:, ::37] *= 8
    module = torch.nn.Linear(columns, rows, bias=False)
    module.weight.data = torch.randn(rows, columns, generator=generator) / columns**0.5
    return module, X.T @ X


def both(monkeypatch, compute):
    """What `compute` returns with the numba kernels and with the torch kernels."""
    compiled = compute()
    monkeypatch.setattr(kernels, "of", lambda tensor: torch_kernels)
    return compiled, compute()


@pytest.mark.parametrize("values", STEPS_BY_NAME.values(), ids=STEPS_BY_NAME)
@pytest.mark.parametrize("seed", range(3))
def test_codes_and_errors_agree_with_numba(monkeypatch, values, seed):
    module, H = layer(seed=seed)
    step = parse(STEPS["quantize"], {"embeddings": 32, **values}, "quantize")
    numba, plain = both(monkeypatch, lambda: one_layer("l", module, step, H))
    assert (numba.codes == plain.codes).float().mean() >= 0.999
    errors = [output_error(module.weight.data, each.dequantize(), H) for each in (numba, plain)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("sweeps", [0, 3])
def test_pruned_weights_agree_with_numba(monkeypatch, pattern, sweeps):
    module, H = layer()
    weight, R = module.weight.data, inverse_factor(H)[0]
    numba, plain = both(monkeypatch, lambda: sparsegpt(weight, H, R, 0.6, pattern, sweeps))
    assert ((numba != 0) == (plain != 0)).float().mean() >= 0.999
    errors = [output_error(weight, each, H) for each in (numba, plain)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)


def test_coordinate_descent_agrees_with_numba(monkeypatch):
    module, H = layer()
    weight = module.weight.data
    mask = weight.abs() > weight.abs().median()

    def descended():
        pruned = weight * mask
        coordinate_descent(pruned, weight, H, mask, 4)
        return pruned

    numba, plain = both(monkeypatch, descended)
    assert torch.equal(plain != 0, mask)
    torch.testing.assert_close(numba, plain, atol=1e-5, rtol=1e-3)


def test_cpu_tensors_get_the_compiled_kernels():
    assert kernels.of(torch.empty(1)) is numba_kernels
    assert kernels.of(torch.empty(1, device="meta")) is torch_kernels


def test_a_device_that_torch_does_not_have_is_refused(capsys, monkeypatch):
    monkeypatch.delenv("KERF_DEVICE", raising=False)
    assert main(["run", "minilm", "--device", "meta"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "device = 'meta'" in error and "cpu" in error
    assert device.current() == "cpu"
    with pytest.raises(InputError, match="device = 'cuda:99'"):
        device.check("cuda:99")


def test_the_device_of_the_environment_is_checked_and_kept_apart_in_the_cache():
    script = "from kerf.core import cache; print(cache.machine().get('device'))"
    environment = {**os.environ, "KERF_DEVICE": "cuda:0"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "cuda:0"
    command = [sys.executable, "-m", "kerf", "check", "minilm"]
    environment["KERF_DEVICE"] = "nonsense"
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "device = 'nonsense'" in refused.stderr
