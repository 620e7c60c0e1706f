"""The sum that runs through all blocks."""

import contextlib

import torch
from torch import Tensor

from .dispatch import is_eager
from .precision import autocast_off


def add_scaled(x: Tensor, gamma: Tensor, branch: Tensor) -> Tensor:
    """Compute x + gamma * branch in one pass.

    On GPUs, autocast would first write a float32 copy of the branch; compilers fuse it.

    Args:
        x: The sum so far, of any shape.
        gamma: Scales, broadcast to this shape.
        branch: What a residual branch adds; of this shape, in any dtype.

    Returns:
        A tensor of the shape and dtype of ``x``.
    """
    if torch.jit.is_scripting():
        return torch.addcmul(x, gamma, branch)
    with autocast_off(x) if is_eager(x) else contextlib.nullcontext():
        return torch.addcmul(x, gamma, branch)
