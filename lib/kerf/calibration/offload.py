"""Offload: CPU tensors that are not needed now, in a mapped file instead of anonymous memory.

The file has no name, so the system may write its pages out and take the memory back, and nothing is left behind when the
process ends. A mapping that no tensor uses any more is reused: the first touch of a page costs more than copying into it.
"""

import ctypes
import mmap
import sys
import tempfile

import torch
from torch import Tensor

from kerf.core.memory import anonymous_bytes
from kerf.core.paths import data_folder

GROWTH = 64 * 2**20  # bytes of anonymous memory after which `trim` acts

_least = [0]  # bytes of anonymous memory, as seen by `trim`
_mapped: dict[int, list[mmap.mmap]] = {}  # by size


def park(tensor: Tensor) -> Tensor:
    """Move the values of `tensor` into a mapped file, in place; a tensor of another device than the CPU stays as it is."""
    if tensor.numel() == 0 or tensor.device.type != "cpu" or getattr(tensor, "parked", False):
        return tensor
    pages = _pages(tensor.numel() * tensor.element_size())
    copy = torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape)
    tensor.data = copy.copy_(tensor)
    tensor.parked = True  # type: ignore[attr-defined]  # a mark on the tensor itself
    return tensor


def _pages(size: int) -> mmap.mmap:
    for pages in _mapped.setdefault(size, []):
        if sys.getrefcount(pages) == 3:  # the list, `pages` and the argument: no tensor's storage
            return pages
    folder = data_folder() / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        _mapped[size].append(mmap.mmap(file.fileno(), size))
    return _mapped[size][-1]


def trim() -> None:
    """Return free memory to the system, where its C library can (glibc keeps most of what torch frees).

    Only after the process has grown: touching returned pages again costs more than returning them.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        return
    now = anonymous_bytes()
    if now > _least[0] + GROWTH:
        libc.malloc_trim(0)
        _least[0] = anonymous_bytes()
    _least[0] = min(_least[0], now)
