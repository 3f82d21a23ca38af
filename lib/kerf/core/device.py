"""The torch device that models are opened on: the CPU, unless KERF_DEVICE (`kerf run --device`) names another one."""

import os

from kerf.core.errors import refuse


def current() -> str:
    """Name of the device, such as "cpu" or "cuda:0"."""
    return os.environ.get("KERF_DEVICE", "cpu")


def check(name: str) -> str:
    """Return `name` if torch has this device. Raises InputError for any other name."""
    if name == "cpu":
        return name
    import torch

    known = ["cpu"]
    if accelerator := torch.accelerator.current_accelerator(check_available=True):
        indices = range(torch.accelerator.device_count())
        known += [accelerator.type, *(f"{accelerator.type}:{index}" for index in indices)]
    if name not in known:
        raise refuse("device", name, f"a device that torch has here: {', '.join(known)}")
    return name
