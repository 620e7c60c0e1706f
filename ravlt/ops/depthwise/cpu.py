"""Depthwise convolution on a CPU, in float32 or float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import naive


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool
) -> Tensor:
    """Convolve with the identity inside of the kernel, without a pass for the sum."""
    if residual:
        weight = weight + _identity(weight)
    if weight.shape[-1] > 3 and weight.requires_grad and torch.is_grad_enabled():
        return _LargeKernel.apply(x.permute(0, 3, 1, 2), weight, bias).permute(
            0, 2, 3, 1
        )
    return naive.depthwise_conv(x, weight, bias, residual=False)


def _identity(weight: Tensor) -> Tensor:
    """Build the kernel (1, 1, k, k) that returns its input."""
    return F.pad(weight.new_ones(1, 1, 1, 1), (weight.shape[-1] // 2,) * 4)


class _LargeKernel(torch.autograd.Function):
    """A depthwise convolution whose kernel's gradient is computed in 3 x 3 pieces.

    oneDNN has a fast gradient for depthwise kernels up to 3 x 3 only; a 5 x 5 kernel
    takes it twenty times as long. A piece is the gradient of a 3 x 3 kernel over the
    shifted input.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(
            x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0]
        )

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        margin = weight.shape[-1] // 2
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _convolution_backward(grad, x, weight, margin, wanted=0)
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, _weight_gradient(grad, x, weight, margin), grad_bias


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, margin: int) -> Tensor:
    padded = F.pad(x, (margin,) * 4)
    height, width = x.shape[-2:]
    size = weight.shape[-1]
    grad_weight = torch.zeros_like(weight)
    starts = {*range(0, size - 2, 3), size - 3}  # the last piece may overlap
    for top in starts:
        for left in starts:
            window = padded[..., top : top + height + 2, left : left + width + 2]
            piece = (..., slice(top, top + 3), slice(left, left + 3))
            grad_weight[piece] = _convolution_backward(
                grad, window, weight[piece], 0, wanted=1
            )
    return grad_weight


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, wanted: int
) -> Tensor:
    """Compute one gradient: for the input (``wanted`` 0) or the kernel (1).

    If it also returned the bias's gradient, oneDNN would compute the kernel's twice.
    """
    channels = weight.shape[0]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], [1, 1], [padding] * 2, [1, 1], False, [0, 0],
        channels, [i == wanted for i in range(3)],
    )[wanted]  # fmt: skip
