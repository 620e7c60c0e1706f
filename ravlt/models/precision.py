"""What half precision must not touch."""

import contextlib

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Lifts half precision to float32; leaves float32 and float64 alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_off(x: Tensor) -> contextlib.AbstractContextManager:
    """Keeps autocast out of a core: sums over tokens need float32."""
    if x.device.type == "meta":  # has no autocast, and needs none
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def under_cpu_autocast() -> bool:
    """Whether products on a CPU are in half precision now."""
    try:
        return torch.is_autocast_enabled("cpu")
    except TypeError:  # before PyTorch 2.4
        return torch.is_autocast_cpu_enabled()
