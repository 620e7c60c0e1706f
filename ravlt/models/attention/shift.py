"""Channels that come from neighbours in the image, or in time (arXiv 2210.08164)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Where groups of channels come from, as released: (rows, columns) away, and frames.
NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1))
FRAMES = ((1,), (-1,))


def spatial_shift(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Half of the channels take the values of the eight neighbours.

    Channels of all heads lie in a row, so that the first half of the heads moves: a
    sixteenth of the channels by each of :data:`NEIGHBOURS`. Beyond a border are zeros.

    Args:
        x: Keys or values of shape (B, heads, H * W, d).
        hw: Height and width of the grid.

    Returns:
        A tensor of the same shape.
    """
    return _shift(x, hw, NEIGHBOURS, share=16)


def temporal_shift(x: Tensor) -> Tensor:
    """An eighth of the channels comes from the next frame, an eighth from the last one.

    Args:
        x: Keys or values of one place in T frames, (B, heads, T, d).

    Returns:
        A tensor of the same shape, with zeros from beyond the first and last frame.
    """
    return _shift(x, x.shape[2:3], FRAMES, share=8)


def _shift(
    x: Tensor, grid: Sequence[int], steps: Sequence[Sequence[int]], share: int
) -> Tensor:
    channels = x.transpose(2, 3).flatten(1, 2).unflatten(2, grid)
    fold = channels.shape[1] // share
    moved, kept = channels.tensor_split((len(steps) * fold,), dim=1)
    moved = F.pad(moved, (1, 1) * len(grid))
    parts = []
    for i, step in enumerate(steps):
        there = (slice(1 + s, 1 + s + n) for s, n in zip(step, grid, strict=True))
        parts.append(moved[(slice(None), slice(i * fold, (i + 1) * fold), *there)])
    y = torch.cat((*parts, kept), dim=1)
    return y.flatten(2).unflatten(1, (x.shape[1], x.shape[3])).transpose(2, 3)
