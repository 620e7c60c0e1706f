"""Numeric precision of operators: sums over tokens need float32."""

import contextlib

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; return float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_off(x: Tensor) -> contextlib.AbstractContextManager:
    """Return a context in which autocast does not change dtypes on the device of x."""
    try:
        return torch.autocast(x.device.type, enabled=False)
    except RuntimeError:  # a device without autocast, such as meta
        return contextlib.nullcontext()


def is_autocast_on_cpu() -> bool:
    """True inside of a CPU autocast region."""
    return torch.is_autocast_enabled("cpu")
