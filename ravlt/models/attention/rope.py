"""Two-dimensional rotary position embedding, as in the released RAVLT.

The first half of each head turns by the row, the second half by the column; both
use the frequencies 10000^(-m / (M - 1)), m = 0 .. M - 1, with M = d / 4. Positions are
raw integers, whatever the resolution.
"""

import functools
import math

import torch
from torch import Tensor, nn

from ravlt.errors import RAVLTError

from ..recording import is_recorded

_BASE = 10000.0
_TOLERANCE = 1e-6


def rope_frequencies(head_dim: int) -> tuple[float, ...]:
    """Gives the d / 4 frequencies; the first is 1, the last 1e-4 (both included).

    Plain floats, because a tensor would follow the module into half precision, where
    the table is off by 0.1 (float16) or meaningless (bfloat16) at 336 positions.
    """
    count = head_dim // 4
    return tuple(_BASE ** (-m / max(count - 1, 1)) for m in range(count))


# Two short tables, one for rows and one for columns: a table of the whole grid would
# take as much memory as the queries. Bounded, because multi-scale training meets many
# sizes.
@functools.lru_cache(maxsize=128)
def rotary_table(
    head_dim: int, length: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Builds the rotations along one axis as unit complex numbers, once a length.

    Args:
        head_dim: Channels of a head, d.
        length: Positions along the axis, in tokens.
        device: Where the table lives.
        dtype: ``torch.float32``, or ``torch.float64`` for tests.

    Returns:
        exp(i angle) as a complex tensor of shape (length, d / 4).
    """
    # A table born in inference mode could not be used by a later training step.
    with torch.inference_mode(False), torch.no_grad():
        angles = _angles(head_dim, length, device, dtype)
        return torch.polar(torch.ones_like(angles), angles)


def _angles(head_dim: int, length: int, device, dtype) -> Tensor:
    theta = torch.tensor(rope_frequencies(head_dim), device=device, dtype=dtype)
    return torch.arange(length, device=device, dtype=dtype)[:, None] * theta


def rotate(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Turns each adjacent pair of features by its token's position.

    Args:
        x: Queries or keys of shape (B, heads, H * W, d), float32 or float64.
        hw: Height and width of the grid, in tokens.

    Returns:
        A tensor of the same shape: (a, b) -> (a cos - b sin, b cos + a sin).
    """
    if is_recorded():
        return _rotate_real(x, hw)
    return _Rotation.apply(x, *_tables(x, hw))


def rotate_(x: Tensor, hw: tuple[int, int], top: int) -> Tensor:
    """Like :func:`rotate`, in place and without gradient, for some rows of the grid.

    Args:
        x: Queries or keys of shape (B, heads, R * W, d): rows ``top`` to ``top + R``.
        hw: Height and width of the whole grid, in tokens.
        top: First row.

    Returns:
        ``x``.
    """
    row, col = _tables(x, hw)
    _turn_(x, row[top : top + x.shape[2] // hw[1]], col)
    return x


class _Rotation(torch.autograd.Function):
    """Products in place on one copy; the gradient turns the other way round."""

    @staticmethod
    def forward(ctx, x: Tensor, row: Tensor, col: Tensor) -> Tensor:
        ctx.save_for_backward(row, col)
        y = x.clone(memory_format=torch.contiguous_format)
        _turn_(y, row, col)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        row, col = ctx.saved_tensors
        return _Rotation.apply(grad, row.conj(), col.conj()), None, None


def _tables(x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    row, col = (rotary_table(x.shape[-1], n, x.device, x.dtype) for n in hw)
    return row, col


def _turn_(x: Tensor, row: Tensor, col: Tensor) -> None:
    """Multiplies pairs by exp(i angle): one pass in place, where reals need six."""
    grid = x.unflatten(2, (len(row), len(col))).unflatten(-1, (2, -1, 2))
    pairs = torch.view_as_complex(grid)  # (B, heads, H, W, 2, d / 4)
    pairs[..., 0, :].mul_(row[:, None])
    pairs[..., 1, :].mul_(col)


def _rotate_real(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """The rotation in real numbers, for compilers and exporters."""
    row, col = (_angles(x.shape[-1], n, x.device, x.dtype) for n in hw)
    height, width = hw
    angles = torch.cat(
        (row[:, None].expand(-1, width, -1), col[None].expand(height, -1, -1)), dim=-1
    ).flatten(0, 1)
    cos, sin = angles.cos(), angles.sin()
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


class RoPE(nn.Module):
    """Keeps the ``angle`` buffer of released checkpoints, and checks it on load.

    The rotation never reads it (see :func:`rope_frequencies`); a checkpoint with
    other angles was trained with another position embedding and must not load.

    Args:
        head_dim: Channels of a head, a multiple of 4.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.register_buffer("angle", self._expected())

    def _expected(self) -> Tensor:
        theta = torch.tensor(rope_frequencies(self.head_dim), dtype=torch.float32)
        return theta.repeat_interleave(2)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        key = f"{prefix}angle"
        if key in state_dict:
            self._check(key, state_dict[key])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check(self, key: str, found: Tensor) -> None:
        # A file in half precision holds the same angles, rounded.
        expected = self._expected().to(found.dtype).float()
        found = found.detach().float().cpu()
        if found.shape != expected.shape:
            worst = math.inf
        else:
            worst = (found - expected).abs().max().item()
        # Not `worst > tolerance`, which a NaN would pass.
        if not worst <= _TOLERANCE:
            raise RAVLTError(
                f"The checkpoint's {key} is not RAVLT's rotary table (it differs by "
                f"{worst:.2g}): the weights were trained with another position "
                f"embedding or head dimension, so use a RAVLT checkpoint of this arch."
            )

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}"
