"""The product of tokens with a weight matrix."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import is_full_precision_on_cpu
from . import cpu


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W^T + b.

    Args:
        x: Tokens of shape (..., C_in).
        weight: W of shape (C_out, C_in).
        bias: b of shape (C_out,), or None.

    Returns:
        A tensor of shape (..., C_out).
    """
    if torch.jit.is_scripting():
        return F.linear(x, weight, bias)
    if bias is not None and is_full_precision_on_cpu(x, weight):
        return cpu.linear(x, weight, bias)
    return F.linear(x, weight, bias)
