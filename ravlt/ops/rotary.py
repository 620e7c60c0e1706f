"""Two-dimensional rotary position embedding (RoPE), as in the released RAVLT.

The first half of each head rotates by the row, the second half by the column. Both use
the frequencies 10000^(-m / (M - 1)), m = 0 .. M - 1, with M = d / 4. Positions are
integers from 0, whatever the resolution.
"""

import math

import torch
from torch import Tensor

from .dispatch import is_eager_on_cpu


def rotary_frequencies(
    head_dim: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the d / 4 frequencies; the first is 1, the last 1e-4 (both included).

    Computed on the device in every forward pass: a copy from the host would make a GPU
    wait, and a table that follows the module into half precision would be off by 0.1
    (float16) or meaningless (bfloat16) at position 336.

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


def rotate(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Rotate each adjacent pair of features by its token's position.

    Args:
        x: Queries or keys of shape (B, heads, H * W, d), float32 or float64.
        hw: Height and width of the grid, in tokens.

    Returns:
        A tensor of the same shape: (a, b) -> (a cos - b sin, b cos + a sin).
    """
    if torch.jit.is_scripting():
        return _rotate_plain(x, hw)
    if is_eager_on_cpu(x):
        return _Rotation.apply(x, *_complex_tables(x, hw))
    return _rotate_plain(x, hw)


def rotate_(x: Tensor, hw: tuple[int, int], top: int) -> Tensor:
    """Compute :func:`rotate` in place and without gradient, for some rows of the grid.

    Args:
        x: Queries or keys of shape (B, heads, R * W, d): rows ``top`` to ``top + R``.
        hw: Height and width of the whole grid, in tokens.
        top: First row.

    Returns:
        ``x``.
    """
    rows = x.shape[2] // hw[1]
    if is_eager_on_cpu(x):
        row, col = _complex_tables(x, (top + rows, hw[1]))
        return _rotate_complex_(x, row[top:], col)
    return x.copy_(_rotate_plain(x, (rows, hw[1]), top))


def _axis_angles(x: Tensor, length: int, first: int = 0) -> Tensor:
    """Compute the angles of positions along one axis, (length, d / 4)."""
    theta = rotary_frequencies(x.shape[-1], x.device, x.dtype)
    positions = torch.arange(first, first + length, device=x.device, dtype=x.dtype)
    return positions[:, None] * theta


def _rotate_plain(x: Tensor, hw: tuple[int, int], top: int = 0) -> Tensor:
    height, width = hw
    rows = _axis_angles(x, height, top)[:, None].expand(-1, width, -1)
    cols = _axis_angles(x, width)[None].expand(height, -1, -1)
    angles = torch.cat((rows, cols), dim=-1).flatten(0, 1)  # (H * W, d / 2)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


class _Rotation(torch.autograd.Function):
    """Multiplies one copy in place; the gradient rotates by the opposite angles."""

    @staticmethod
    def forward(x: Tensor, row: Tensor, col: Tensor) -> Tensor:
        copy = x.clone(memory_format=torch.contiguous_format)
        return _rotate_complex_(copy, row, col)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        row, col = ctx.saved_tensors
        return _Rotation.apply(grad, row.conj(), col.conj()), None, None


def _complex_tables(x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute exp(i angle) along both axes, (H, d / 4) and (W, d / 4).

    A table of the whole grid would take as much memory as the queries.
    """
    row, col = (_axis_angles(x, length) for length in hw)
    return (
        torch.polar(torch.ones_like(row), row),
        torch.polar(torch.ones_like(col), col),
    )


def _rotate_complex_(x: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Multiply pairs by exp(i angle): one pass in place; real numbers take six."""
    grid = x.unflatten(2, (len(row), len(col))).unflatten(-1, (2, -1, 2))
    pairs = torch.view_as_complex(grid)  # (B, heads, H, W, 2, d / 4)
    pairs[..., 0, :].mul_(row[:, None])
    pairs[..., 1, :].mul_(col)
    return x
