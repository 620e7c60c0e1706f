"""Shifts of channels between neighbouring tokens (arXiv 2210.08164)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Offsets (rows, columns) of the neighbours that the groups of channels come from, in
# the released order.
NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1))


def spatial_shift(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Replace half of the channels by those of the eight neighbours.

    One sixteenth of the channels comes from each of :data:`NEIGHBOURS`. Channels of all
    heads are in one row, so that the first half of the heads is shifted.

    Args:
        x: Keys or values of shape (B, heads, H * W, d).
        hw: Height and width of the grid.

    Returns:
        A tensor of the same shape, with zeros from beyond the border.
    """
    return shift_channels(x, hw, NEIGHBOURS, share=16)


def shift_channels(
    x: Tensor, grid: Sequence[int], offsets: Sequence[Sequence[int]], share: int
) -> Tensor:
    """Replace groups of channels by those of neighbours on a grid.

    With C = heads * d channels, group i holds the channels from i (C // share) to
    (i + 1) (C // share) - 1, head-major. It comes from the token at offset i. The
    remaining channels stay.

    Args:
        x: Keys or values of shape (B, heads, N, d).
        grid: Sizes of the grid's axes; their product is N.
        offsets: For each group the offset along every axis, -1, 0 or 1.
        share: Denominator of a group's share of the channels.

    Returns:
        A tensor of the same shape, with zeros from beyond the border.
    """
    channels = x.transpose(2, 3).flatten(1, 2).unflatten(2, grid)
    size = channels.shape[1] // share
    moved, kept = channels.tensor_split((len(offsets) * size,), dim=1)
    moved = F.pad(moved, (1, 1) * len(grid))
    parts = []
    for i, offset in enumerate(offsets):
        source = (slice(1 + o, 1 + o + n) for o, n in zip(offset, grid, strict=True))
        parts.append(moved[(slice(None), slice(i * size, (i + 1) * size), *source)])
    y = torch.cat((*parts, kept), dim=1)
    return y.flatten(2).unflatten(1, (x.shape[1], x.shape[3])).transpose(2, 3)
