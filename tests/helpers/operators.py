"""Calls of every operator, for tests of all its forms."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.backbones import images
from ravlt.ops.depthwise import depthwise_conv
from ravlt.ops.elu1 import elu1
from ravlt.ops.layout import channels_first
from ravlt.ops.linear import linear
from ravlt.ops.rala import rala
from ravlt.ops.rotary import rotate

HW = (5, 7)
HEADS, D = 2, 8


@dataclass(frozen=True)
class Call:
    """An operator and its tensors.

    Args:
        run: The operator as a function of tensors only.
        shapes: Shapes of these tensors.
    """

    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]

    def inputs(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Draw tensors that require gradients."""
        generator = torch.Generator().manual_seed(0)
        return [
            torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
            for shape in self.shapes
        ]


def _attention(**options) -> Call:
    tokens = (2, HEADS, HW[0] * HW[1], D)
    return Call(lambda q, k, v: rala(q, k, v, HW, **options), (tokens,) * 3)


def _depthwise(size: int, residual: bool) -> Call:
    return Call(
        lambda x, w, b: depthwise_conv(x, w, b, residual),
        ((2, *HW, 6), (6, 1, size, size), (6,)),
    )


CALLS = {
    "linear": Call(linear, ((2, *HW, 6), (9, 6), (9,))),
    "linear without bias": Call(linear, ((2, *HW, 6), (9, 6))),
    "elu1": Call(elu1, ((2, 3, 5),)),
    "rotate": Call(lambda x: rotate(x, HW), ((2, HEADS, HW[0] * HW[1], D),)),
    "channels_first": Call(channels_first, ((2, *HW, 6),)),
    "depthwise 3": _depthwise(3, residual=False),
    "depthwise 3 residual": _depthwise(3, residual=True),
    "depthwise 5": _depthwise(5, residual=False),
    "depthwise 7 residual": _depthwise(7, residual=True),
    "rala": _attention(),
    "rala without rotation": _attention(rope=False),
    "linear attention": _attention(rope=False, reweight=False),
    "linear attention, rotated": _attention(reweight=False),
}


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate a random sum of a result."""
    weights = images(*y.shape).to(y)
    return torch.autograd.grad((y * weights).sum(), inputs)
