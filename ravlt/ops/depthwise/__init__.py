"""Depthwise convolution of channels-last tokens."""

import torch
from torch import Tensor

from ..dispatch import is_full_precision_on_cpu
from ..gpu import HAS_TRITON, runs_as_kernel
from . import cpu, naive

if HAS_TRITON:
    from . import triton


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: bool = False
) -> Tensor:
    """Convolve each channel with its own k x k kernel, zero-padded.

    Args:
        x: Tokens of shape (B, H, W, C).
        weight: Kernels of shape (C, 1, k, k), k odd.
        bias: Of shape (C,), or None.
        residual: Whether to add ``x`` to the result.

    Returns:
        A tensor of the shape of ``x``.
    """
    if torch.jit.is_scripting():
        return naive.depthwise_conv(x, weight, bias, residual)
    biases = () if bias is None else (bias,)
    if runs_as_kernel(x, weight, *biases) and triton.supports(weight):
        return triton.depthwise_conv(x, weight, bias, residual)
    # Half precision would round 1 + w, the kernel with the identity inside, to
    # multiples of 2^-7 (bfloat16), and with it the residual stream.
    if is_full_precision_on_cpu(x, weight):
        return cpu.depthwise_conv(x, weight, bias, residual)
    return naive.depthwise_conv(x, weight, bias, residual)
