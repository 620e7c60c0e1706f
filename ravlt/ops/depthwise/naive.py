"""Depthwise convolution in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool
) -> Tensor:
    """Convolve, then add the input; see :func:`ravlt.ops.depthwise.depthwise_conv`."""
    y = F.conv2d(
        x.permute(0, 3, 1, 2),
        weight,
        bias,
        padding=weight.shape[-1] // 2,
        groups=weight.shape[0],
    ).permute(0, 2, 3, 1)
    if not residual:
        return y
    # Under autocast the sum stays as precise as x.
    return y.add_(x) if y.dtype == x.dtype else x + y
