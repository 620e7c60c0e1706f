"""Depthwise convolution on a GPU: custom operators around the Triton kernels.

The kernels read x in its own dtype, whatever that of the weights is, and sum in
float32. Gradients of all orders consist of the same two operators, which are linear in
both of their tensors.
"""

import torch
import triton
from torch import Tensor

from ..launch import LAUNCH_OPTIONS, count_programs, with_contiguous_channels
from . import kernels

# Side of a tile of tokens, and channels, of a program that sums weight gradients.
GRADIENT_TILE = dict(TILE=4, BLOCK=64)


def convolution_tile(dtype: torch.dtype) -> dict:
    """Choose a tile of which all taps fit into registers: 64 bytes of each token."""
    return dict(TILE=8, BLOCK=64 // dtype.itemsize)


def supports(weight: Tensor) -> bool:
    """True if the kernels have registers for all taps at once."""
    return weight.shape[-1] <= 5


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool
) -> Tensor:
    """Compute :func:`ravlt.ops.depthwise.depthwise_conv` in the dtype of ``x``."""
    return _convolution(x, weight, bias, residual, False)


@torch.library.custom_op("ravlt::depthwise_conv", mutates_args=())
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, flip: bool
) -> Tensor:
    """Convolve, with the kernels turned by 180 degrees if ``flip``."""
    y = _like(x, weight, bias, residual, flip)
    x = with_contiguous_channels(x)
    height, width, channels = x.shape[1:]
    tile = convolution_tile(x.dtype)
    tiles, blocks = _count_tiles(x, **tile)
    # Neighbouring threads have neighbouring channels, and so need their taps.
    taps = weight.flatten(1).t().contiguous()
    with torch.cuda.device_of(x):
        kernels.convolution[(tiles * blocks,)](
            *(x, x.stride(), taps, bias, y, y.stride(), height, width),
            FLIP=flip,
            RESIDUAL=residual,
            C=channels,
            SIZE=weight.shape[-1],
            **tile,
            **LAUNCH_OPTIONS,
        )
    return y


@_convolution.register_fake
def _like(x, weight, bias, residual, flip):
    channels, size = x.shape[-1], weight.shape[-1]
    fits = weight.shape == (channels, 1, size, size) and size % 2 == 1
    if not fits or (bias is not None and bias.shape != (channels,)):
        raise ValueError(
            f"Tokens with {channels} channels need kernels ({channels}, 1, k, k), k "
            f"odd, and as many biases or none, and got kernels {tuple(weight.shape)}."
        )
    return x.new_empty(x.shape)


@torch.library.custom_op("ravlt::depthwise_weight_gradient", mutates_args=())
def _weight_gradient(x: Tensor, grad: Tensor, size: int) -> Tensor:
    """Return the gradients of kernels (C, 1, size, size), float32."""
    x, grad = with_contiguous_channels(x), with_contiguous_channels(grad)
    height, width, channels = x.shape[1:]
    tiles, blocks = _count_tiles(x, **GRADIENT_TILE)
    programs = count_programs(x.device) // (size * blocks)
    programs = min(max(programs, 1), max(tiles, 1))
    sums = x.new_empty(programs, size, size, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        kernels.weight_gradients[(programs, size, blocks)](
            *(x, x.stride(), grad, grad.stride(), sums),
            *(height, width, tiles, triton.cdiv(tiles, programs)),
            C=channels,
            SIZE=size,
            PADDED=triton.next_power_of_2(size),
            **GRADIENT_TILE,
            **LAUNCH_OPTIONS,
        )
    return sums.sum(0).permute(2, 0, 1)[:, None].contiguous()


@_weight_gradient.register_fake
def _(x, grad, size):
    return x.new_empty(x.shape[-1], 1, size, size, dtype=torch.float32)


def _keep_convolution(ctx, inputs, output) -> None:
    x, weight, bias, ctx.residual, ctx.flip = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _differentiate_convolution(ctx, grad):
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _convolution(grad, weight, None, ctx.residual, not ctx.flip)
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_gradient(x, grad, weight.shape[-1]).to(weight.dtype)
        if ctx.flip:
            grad_weight = grad_weight.flip(2, 3)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 1, 2), dtype=torch.float32).to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, None, None


def _keep_weight_gradient(ctx, inputs, output) -> None:
    x, grad, ctx.size = inputs
    ctx.save_for_backward(x, grad)


def _differentiate_weight_gradient(ctx, grad_weight):
    x, grad = ctx.saved_tensors
    grad_x = _convolution(grad, grad_weight, None, False, True)
    return grad_x, _convolution(x, grad_weight, None, False, False), None


_convolution.register_autograd(
    _differentiate_convolution, setup_context=_keep_convolution
)
_weight_gradient.register_autograd(
    _differentiate_weight_gradient, setup_context=_keep_weight_gradient
)


def _count_tiles(x: Tensor, TILE: int, BLOCK: int) -> tuple[int, int]:
    """Count tiles of all images, and blocks of channels."""
    batch, height, width, channels = x.shape
    tiles = batch * triton.cdiv(height, TILE) * triton.cdiv(width, TILE)
    return tiles, triton.cdiv(channels, BLOCK)
