"""The rotation on a GPU, as a custom operator around the Triton kernels."""

import torch
import triton
from torch import Tensor

from ..launch import LAUNCH_OPTIONS, empty_tokens, with_contiguous_channels
from . import kernels


def rotate(q: Tensor, k: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute :func:`ravlt.ops.rotary.rotate` of queries and keys, in their dtype."""
    return _rotate(q, k, hw[0], hw[1], False)


@torch.library.custom_op("ravlt::rotate", mutates_args=())
def _rotate(
    q: Tensor, k: Tensor, height: int, width: int, inverse: bool
) -> tuple[Tensor, Tensor]:
    _check_grid(q, k, height, width)
    with torch.cuda.device_of(q):
        table = rotary_table(max(height, width), q.shape[-1], q.device)
        return tuple(_rotate_one(x, table, width, inverse) for x in (q, k))


@_rotate.register_fake
def _(q, k, height, width, inverse):
    _check_grid(q, k, height, width)
    return empty_tokens(q), empty_tokens(k)


def _keep(ctx, inputs, output) -> None:
    *_, ctx.height, ctx.width, ctx.inverse = inputs


def _differentiate(ctx, q_grad, k_grad):
    back = _rotate(q_grad, k_grad, ctx.height, ctx.width, not ctx.inverse)
    return *back, None, None, None


_rotate.register_autograd(_differentiate, setup_context=_keep)


def _check_grid(q: Tensor, k: Tensor, height: int, width: int) -> None:
    if not q.shape[2] == k.shape[2] == height * width or q.shape[3] % 4:
        raise ValueError(
            f"q and k have the shapes {tuple(q.shape)} and {tuple(k.shape)}; both have "
            f"to be (B, heads, {height * width}, d) with d a multiple of 4."
        )


def _rotate_one(x: Tensor, table: Tensor, width: int, inverse: bool) -> Tensor:
    x, y = with_contiguous_channels(x), empty_tokens(x)
    batch, num_heads, tokens, dim = x.shape
    block = 32
    kernels.rotate_tiles[(triton.cdiv(tokens, block), batch * num_heads)](
        *(x, x.stride(), table, y, y.stride()),
        num_heads=num_heads,
        num_tokens=tokens,
        width=width,
        size=table.shape[1],
        INVERSE=inverse,
        D=dim,
        DP=triton.next_power_of_2(dim),
        BLOCK=block,
        **LAUNCH_OPTIONS,
    )
    return y


def rotary_table(size: int, head_dim: int, device: torch.device) -> Tensor:
    """Compute cos and sin of all angles.

    Anew in every call: a cached table could be freed while a CUDA graph still reads it.

    Args:
        size: Number of positions: the longer side of the grid.
        head_dim: Channels of a head, d.
        device: The GPU.

    Returns:
        A float32 tensor of shape (2, size, d / 4).
    """
    count = head_dim // 4
    table = torch.empty(2, size, count, device=device)
    kernels.rotary_table[(triton.cdiv(size, 16),)](
        table,
        size,
        COUNT=count,
        PADDED=triton.next_power_of_2(count),
        BLOCK=16,
        **LAUNCH_OPTIONS,
    )
    return table
