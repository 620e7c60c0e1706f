"""Operators at sizes beyond Triton's interpreter, against float64 on the device."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers.backbones import largest_error
from helpers.kernels import DEVICE, DTYPES, rounding
from ravlt.models.attention import split_heads
from ravlt.ops import plain_forms
from ravlt.ops.depthwise import depthwise_conv
from ravlt.ops.rala import rala
from ravlt.ops.rotary import rotate_queries_and_keys

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Height and width, images, heads: a batch in training; one head, whose splits have to
# fill the GPU; thousands of heads.
GRIDS = {
    "4,200 tokens of 64 heads": ((60, 70), 4, 16),
    "260,000 tokens of 1 head": ((400, 650), 1, 1),
    "195 tokens of 4,096 heads": ((13, 15), 512, 8),
}
grids = pytest.mark.parametrize(("hw", "batch", "heads"), GRIDS.values(), ids=GRIDS)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw a tensor that requires gradients."""
    generator = torch.Generator(DEVICE).manual_seed(sum(shape))
    x = torch.randn(*shape, generator=generator, device=DEVICE)
    return x.to(dtype).requires_grad_()


def compare(run: Callable[..., Tensor], inputs: list[Tensor], bound: float) -> None:
    """Compare a result and its gradients with those of the plain form in float64."""
    y = run(*inputs)
    grad = draw(*y.shape, dtype=y.dtype).detach()
    found = (y, *torch.autograd.grad(y, inputs, grad))
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with plain_forms():
        expected = run(*exact)
    expected = (expected, *torch.autograd.grad(expected, exact, grad.double()))
    for i, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        assert largest_error(got, wanted) < bound, f"result {i}"


def heads_of(hw, batch, heads, dim, dtype) -> list[Tensor]:
    """Draw q, k and v as the layer makes them: views of one product."""
    product = draw(batch, *hw, 4 * heads * dim, dtype=dtype).detach()
    parts = product.chunk(4, dim=-1)[:3]
    return [split_heads(t, heads).requires_grad_() for t in parts]


def rotated(hw: tuple[int, int]) -> float:
    """Bound the error of angles in float32: position times a rounded frequency."""
    return 2 * max(hw) * torch.finfo(torch.float32).eps


@grids
@pytest.mark.parametrize("dim", [64, 96])
@dtypes
def test_rala(hw, batch, heads, dim, dtype):
    inputs = heads_of(hw, batch, heads, dim, dtype)
    # Where float32 does not fit into shared memory, float16 is multiplied as bfloat16.
    is_rounded = dtype == torch.float16 and dim > 64
    bound = rounding(torch.bfloat16 if is_rounded else dtype)
    compare(lambda *x: rala(*x, hw), inputs, bound + rotated(hw))


@grids
@pytest.mark.parametrize(
    ("rope", "reweight"),
    [(False, True), (True, False), (False, False)],
    ids=["rala without rotation", "linear, rotated", "linear"],
)
def test_variants(hw, batch, heads, rope, reweight):
    inputs = heads_of(hw, batch, heads, 64, torch.bfloat16)
    bound = rounding(torch.bfloat16) + rotated(hw)
    compare(lambda *x: rala(*x, hw, rope, reweight), inputs, bound)


@dtypes
def test_rotation(dtype):
    hw = (400, 650)
    q, k, _ = heads_of(hw, 1, 2, 96, dtype)
    compare(
        lambda *x: torch.cat(rotate_queries_and_keys(*x, hw)),
        [q, k],
        rounding(dtype) + rotated(hw),
    )


@pytest.mark.parametrize(
    ("shape", "size", "residual"),
    [((1, 400, 650, 64), 3, True), ((8, 100, 168, 96), 5, False)],
    ids=str,
)
@dtypes
def test_depthwise_convolution(shape, size, residual, dtype):
    """Weights stay in float32, as they do under autocast."""
    channels = shape[-1]
    x = draw(*shape[:-1], 3 * channels, dtype=dtype).detach().chunk(3, dim=-1)[1]
    weight, bias = draw(channels, 1, size, size), draw(channels)
    compare(
        lambda *x: depthwise_conv(*x, residual),
        [x.requires_grad_(), weight, bias],
        rounding(dtype),
    )
