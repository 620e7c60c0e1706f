"""Depthwise convolution of channels-last tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import under_cpu_autocast
from .recording import is_recorded


class DepthwiseConv(nn.Conv2d):
    """A depthwise k x k convolution of (B, H, W, C) tokens, zero-padded.

    Args:
        channels: Number of channels, C.
        kernel_size: Side of the kernel, k; odd.
        residual: Whether to add the input to the result.
        bias: Whether to add a bias; a batch norm afterwards needs none.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        residual: bool = False,
        bias: bool = True,
    ) -> None:
        padding = kernel_size // 2
        super().__init__(
            channels, channels, kernel_size, padding=padding, groups=channels, bias=bias
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        # With the identity in the kernel, the sum takes no pass over the tokens.
        weight = self.weight + self._identity() if self.residual else self.weight
        if _gradient_in_pieces(x, weight):
            return to_tokens(_Depthwise.apply(to_image(x), weight, self.bias))
        return to_tokens(self._conv_forward(to_image(x), weight, self.bias))

    @torch.no_grad()
    def fold_identity(self) -> None:
        """Adds the input to the result for good."""
        self.weight.add_(self._identity())
        self.residual = False

    def _identity(self) -> Tensor:
        """The kernel (C, 1, k, k) that gives back the input."""
        one = torch.ones_like(self.weight[..., :1, :1])
        return F.pad(one, (self.padding[0],) * 4)


def _gradient_in_pieces(x: Tensor, weight: Tensor) -> bool:
    return (
        weight.shape[-1] > 3
        and weight.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and not under_cpu_autocast()
        and not is_recorded()
    )


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose kernel's gradient is made of 3 x 3 pieces.

    The CPU's library has a fast gradient for depthwise kernels up to 3 x 3 only; a
    5 x 5 one takes it twenty times as long. A piece is the gradient of a 3 x 3 kernel
    over the shifted input.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(
            x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0]
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        size = weight.shape[-1]
        # Asked for the bias, too, the library would compute the kernel's once more.
        wanted = (ctx.needs_input_grad[0], False, False)
        grad_x, _, _ = _backward(grad, x, weight, size // 2, wanted)
        padded = F.pad(x, (size // 2,) * 4)
        height, width = x.shape[-2:]
        grad_weight = torch.empty_like(weight)
        starts = {*range(0, size - 2, 3), size - 3}
        for top in starts:
            for left in starts:
                window = padded[..., top : top + height + 2, left : left + width + 2]
                piece = (..., slice(top, top + 3), slice(left, left + 3))
                wanted = (False, True, False)
                grad_weight[piece] = _backward(grad, window, weight[piece], 0, wanted)[
                    1
                ]
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


def _backward(grad: Tensor, x: Tensor, weight: Tensor, padding: int, wanted):
    """Gradients of a depthwise convolution for input, kernel and bias."""
    channels = weight.shape[0]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], [1, 1], [padding] * 2, [1, 1], False, [0, 0],
        channels, wanted,
    )  # fmt: skip


def to_image(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W) without moving memory."""
    return x.permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C) without moving memory."""
    return x.permute(0, 2, 3, 1)
