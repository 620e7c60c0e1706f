"""The feature map elu(x) + 1."""

import torch
from torch import Tensor

from .dispatch import is_eager


def elu1(x: Tensor) -> Tensor:
    """Compute elu(x) + 1: x + 1 above zero, exp(x) below.

    ``F.elu(x) + 1`` would round to 0 below -17 in float32 and can make a denominator
    vanish; this form stays positive down to -103, and its gradient at 0 is 1.

    Args:
        x: Any shape, float32 or float64.

    Returns:
        A tensor of the same shape.
    """
    if torch.jit.is_scripting():
        return _elu1_plain(x)
    return _ELU1.apply(x) if is_eager(x) else _elu1_plain(x)


def elu1_(x: Tensor) -> Tensor:
    """Compute :func:`elu1` in place, without gradient."""
    below = x.clamp(max=0).exp_()
    return x.clamp_(min=0).add_(below)


def _elu1_plain(x: Tensor) -> Tensor:
    # At 0 the derivative is that of x + 1: clamp's depends on the release of PyTorch.
    return torch.where(x >= 0, x + 1, x.clamp(max=0).exp())


class _ELU1(torch.autograd.Function):
    """elu(x) + 1, saving only the output y: the derivative is min(y, 1)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return elu1_(x.clone())

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * y.clamp(max=1)
