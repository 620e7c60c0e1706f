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


def rotary_table(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Compute the angles of all positions along the longer axis.

    One short table serves rows and columns: a table of the whole grid would take as
    much memory as the queries.

    Args:
        x: Gives head dimension d, device and dtype; float32 or float64.
        hw: Height and width of the grid, in tokens.

    Returns:
        Angles of shape (max(H, W), d / 4); on a CPU, outside of compilers and tracers,
        exp(i angle) as complex numbers.
    """
    theta = rotary_frequencies(x.shape[-1], x.device, x.dtype)
    length = max(hw[0], hw[1])
    positions = torch.arange(length, device=x.device, dtype=x.dtype)
    angles = positions[:, None] * theta
    if torch.jit.is_scripting():
        return angles
    return (
        torch.polar(torch.ones_like(angles), angles) if is_eager_on_cpu(x) else angles
    )


def rotate(x: Tensor, hw: tuple[int, int], table: Tensor | None = None) -> Tensor:
    """Rotate each adjacent pair of features by its token's position.

    Args:
        x: Queries or keys of shape (B, heads, H * W, d), float32 or float64.
        hw: Height and width of the grid, in tokens.
        table: Result of :func:`rotary_table`, to share it; None computes it.

    Returns:
        A tensor of the same shape: (a, b) -> (a cos - b sin, b cos + a sin).
    """
    if table is None:
        table = rotary_table(x, hw)
    rows, cols = table[: hw[0]], table[: hw[1]]
    if torch.jit.is_scripting() or not table.is_complex():
        return _rotate_real(x, rows, cols)
    return _Rotation.apply(x, rows, cols)


def rotate_(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Compute :func:`rotate` in place and without gradient, for some rows of a grid.

    Args:
        x: Queries or keys of shape (B, heads, R * W, d).
        rows: Part of a :func:`rotary_table` for the R rows.
        cols: Part of it for the W columns.

    Returns:
        ``x``.
    """
    if rows.is_complex():
        return _rotate_complex_(x, rows, cols)
    return x.copy_(_rotate_real(x, rows, cols))


def _rotate_real(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    height, width = rows.shape[0], cols.shape[0]
    rows = rows[:, None].expand(height, width, -1)
    cols = cols[None].expand(height, width, -1)
    angles = torch.cat((rows, cols), dim=-1).flatten(0, 1)  # (H * W, d / 2)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


class _Rotation(torch.autograd.Function):
    """A rotation in place of one copy; the gradient rotates by the opposite angles."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        copy = x.clone(memory_format=torch.contiguous_format)
        return _rotate_complex_(copy, rows, cols)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, cols = ctx.saved_tensors
        return _Rotation.apply(grad, rows.conj(), cols.conj()), None, None


def _rotate_complex_(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Multiply pairs by exp(i angle): one pass in place; real numbers take six."""
    grid = x.unflatten(2, (len(rows), len(cols))).unflatten(-1, (2, -1, 2))
    pairs = torch.view_as_complex(grid)  # (B, heads, H, W, 2, d / 4)
    pairs[..., 0, :].mul_(rows[:, None])
    pairs[..., 1, :].mul_(cols)
    return x
