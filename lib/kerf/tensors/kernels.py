"""The inner loops of GPTQ, SparseGPT and the clip search: compiled by numba for CPU tensors, in torch for other devices."""

from types import ModuleType

import torch

from kerf.tensors import numba_kernels, torch_kernels


def of(tensor: torch.Tensor) -> ModuleType:
    """The kernels for tensors on that device: keep_better, round_block, prune_block, descend and descend_kept."""
    return numba_kernels if tensor.device.type == "cpu" else torch_kernels
