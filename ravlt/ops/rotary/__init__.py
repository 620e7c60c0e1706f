"""Two-dimensional rotary position embedding (RoPE), as in the released RAVLT.

The first half of each head rotates by the row, the second half by the column. Both use
the frequencies 10000^(-m / (M - 1)), m = 0 .. M - 1, with M = d / 4. Positions are
integers from 0, whatever the resolution.
"""

import math

import torch
from torch import Tensor

from ..dispatch import is_eager, is_eager_on_cpu
from ..gpu import HAS_TRITON, runs_as_kernel
from ..precision import at_least_float32

if HAS_TRITON:
    from . import triton


def rotary_frequencies(
    head_dim: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the d / 4 frequencies; the first is 1, the last 1e-4 (both included).

    Computed on the device in every forward pass: a copy from the host would make a GPU
    wait, and angles in half precision would be off by 0.05 (float16) or 0.6 (bfloat16)
    radians at position 335.

    Args:
        head_dim: Channels of a head, d.
        device: Where the frequencies live; None takes PyTorch's default.
        dtype: float32 or float64.

    Returns:
        A tensor of shape (d / 4,).
    """
    logarithms = torch.linspace(
        0.0, -math.log(10000.0), head_dim // 4, device=device, dtype=dtype
    )
    return logarithms.exp()


def rotary_tables(x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute the angles of all positions along both axes.

    Two short tables: one of the whole grid would take as much memory as the queries.

    Args:
        x: Gives head dimension d, device and dtype; float32 or float64.
        hw: Height and width of the grid, in tokens.

    Returns:
        Angles of shape (H, d / 4) and (W, d / 4); on a CPU, outside of compilers and
        tracers, exp(i angle) as complex numbers.
    """
    theta = rotary_frequencies(x.shape[-1], x.device, x.dtype)
    rows = torch.arange(hw[0], device=x.device, dtype=x.dtype)[:, None] * theta
    cols = torch.arange(hw[1], device=x.device, dtype=x.dtype)[:, None] * theta
    if torch.jit.is_scripting():
        return rows, cols
    if is_eager_on_cpu(x):
        rows = torch.polar(torch.ones_like(rows), rows)
        cols = torch.polar(torch.ones_like(cols), cols)
    return rows, cols


def rotate_queries_and_keys(
    q: Tensor, k: Tensor, hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Rotate in float32 or wider, and return the dtypes of ``q`` and ``k``.

    Args:
        q: Queries of shape (B, heads, H * W, d).
        k: Keys of shape (B, heads, H * W, d).
        hw: Height and width of the grid, in tokens.

    Returns:
        Both as :func:`rotate` returns them.
    """
    if torch.jit.is_scripting():
        return _rotate_both(q, k, hw)
    # A compiler fuses the plain form with its neighbours.
    if is_eager(q) and runs_as_kernel(q, k):
        return triton.rotate(q, k, hw)
    return _rotate_both(q, k, hw)


def _rotate_both(q: Tensor, k: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    wide_q, wide_k = at_least_float32(q), at_least_float32(k)
    tables = rotary_tables(wide_q, hw)
    rotated_q, rotated_k = rotate(wide_q, hw, tables), rotate(wide_k, hw, tables)
    return rotated_q.to(q.dtype), rotated_k.to(k.dtype)


def rotate(
    x: Tensor, hw: tuple[int, int], tables: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Rotate each adjacent pair of features by its token's position.

    Args:
        x: Queries or keys of shape (B, heads, H * W, d), float32 or float64.
        hw: Height and width of the grid, in tokens.
        tables: Result of :func:`rotary_tables`, to share it; None computes it.

    Returns:
        A tensor of the same shape: (a, b) -> (a cos - b sin, b cos + a sin).
    """
    if tables is None:
        tables = rotary_tables(x, hw)
    rows, cols = tables
    if torch.jit.is_scripting():
        return _rotate_real(x, rows, cols)
    if is_eager(x):
        return _Rotation.apply(x, rows, cols)
    return _rotate_real(x, rows, cols)


def rotate_(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Compute :func:`rotate` in place and without gradient, for some rows of a grid.

    Args:
        x: Queries or keys of shape (B, heads, R * W, d).
        rows: Part of the first table for the R rows.
        cols: Second table.

    Returns:
        ``x``.
    """
    if rows.is_complex():
        return _rotate_complex_(x, rows, cols)
    return x.copy_(_rotate_real(x, rows, cols))


def _rotate_real(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Rotate the first half of each head by ``rows``, the second half by ``cols``."""
    grid = x.unflatten(2, [rows.shape[0], cols.shape[0]])
    first, second = grid.chunk(2, dim=-1)
    first = _rotate_pairs(first, rows[:, None])
    return torch.cat((first, _rotate_pairs(second, cols)), dim=-1).flatten(2, 3)


def _rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


class _Rotation(torch.autograd.Function):
    """A rotation that saves only its angles; backward rotates by their negatives."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        if not rows.is_complex():
            return _rotate_real(x, rows, cols)
        copy = x.clone(memory_format=torch.contiguous_format)
        return _rotate_complex_(copy, rows, cols)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        opposite = (t.conj() if t.is_complex() else -t for t in ctx.saved_tensors)
        return _Rotation.apply(grad, *opposite), None, None


def _rotate_complex_(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Multiply pairs by exp(i angle): one pass in place; real numbers take six."""
    grid = x.unflatten(2, (len(rows), len(cols))).unflatten(-1, (2, -1, 2))
    pairs = torch.view_as_complex(grid)  # (B, heads, H, W, 2, d / 4)
    pairs[..., 0, :].mul_(rows[:, None])
    pairs[..., 1, :].mul_(cols)
    return x
