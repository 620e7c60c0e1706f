"""Tiles of a grid of tokens: inference computes on pieces that stay in the cache.

Every operation of RAVLT is pointwise, local, or a sum over tokens, so tiles give the
same numbers as the whole grid; a local operation takes a halo along and drops what the
halo's own border spoilt.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .recording import is_recorded

# Tokens along a side of a tile. On a CPU a tile's tensors stay in the caches, and the
# allocator recycles them; elsewhere tiles only bound the memory, and are so large that
# few images need more than one.
CPU_TILE = 96
DEVICE_TILE = 512

Region = tuple[slice, slice, slice]


class Workspace:
    """What the blocks of one inference share: the size of tiles, and memory.

    Args:
        x: Any tensor of the inference, for its device.
        tile: Tokens along a side of a tile; None takes the device's default.
    """

    def __init__(self, x: Tensor, tile: int | None) -> None:
        default = CPU_TILE if x.device.type == "cpu" else DEVICE_TILE
        self.side = default if tile is None else tile
        self._memory: dict[str, Tensor] = {}

    def split_batch(self, x: Tensor) -> tuple[Tensor, ...]:
        """Splits (B, H, W, C) into images if the batch together exceeds a tile."""
        tokens = x.shape[0] * x.shape[1] * x.shape[2]
        return (x,) if tokens <= self.side**2 else x.split(1)

    def empty(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Gives uninitialised memory of the shape of ``like``, the same for a name.

        Fresh memory costs the CPU more than what is written to it: every page faults.
        """
        size = like.numel() * dtype.itemsize
        flat = self._memory.get(name)
        if flat is None or flat.numel() < size:
            flat = like.new_empty(size, dtype=torch.uint8)
            self._memory[name] = flat
        return flat[:size].view(dtype).view(like.shape)


def workspace_for(module: nn.Module, x: Tensor, tile: int | None) -> Workspace | None:
    """Prepares inference in tiles, if ``module`` is about to do that.

    Args:
        module: The network.
        x: Its input.
        tile: Tokens along a side of a tile; None takes the device's default.

    Returns:
        None if whole grids are to be computed: in training, where gradients are asked
        for, for compilers and tracers (which unroll loops), and where ``tile`` is 0.
    """
    whole = tile == 0 or module.training or torch.is_grad_enabled() or is_recorded()
    return None if whole else Workspace(x, tile)


def row_tiles(height: int, width: int, side: int) -> Iterator[tuple[int, int]]:
    """Splits a grid into runs of whole rows, of about ``side**2`` tokens.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        side: Tokens along a side of a tile.

    Yields:
        The first row, and the one after the last.
    """
    return _spans(height, max(side**2 // width, 1))


def grid_tiles(
    height: int, width: int, side: int, halo: int
) -> Iterator[tuple[Region, Region, Region]]:
    """Splits a grid into tiles of about ``side`` x ``side`` tokens.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        side: Tokens along a side of a tile.
        halo: Tokens that a local operation sees beyond its own.

    Yields:
        Three indices for (B, H, W, C) tensors: the tile, the tile with its halo (as
        far as the grid reaches), and the tile inside of the latter.
    """
    columns = max(round(width / side), 1)
    rows = side**2 // -(-width // columns)
    for top, bottom in _spans(height, max(rows, 1)):
        row = _with_halo(top, bottom, height, halo)
        for left, right in _spans(width, -(-width // columns)):
            col = _with_halo(left, right, width, halo)
            yield tuple((slice(None), *pair) for pair in zip(row, col, strict=True))


def _spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Cuts 0 .. count into the fewest, nearly equal pieces of at most `size`."""
    pieces = -(-count // size)
    for i in range(pieces):
        yield i * count // pieces, (i + 1) * count // pieces


def _with_halo(start: int, stop: int, count: int, halo: int) -> tuple[slice, ...]:
    low, high = max(start - halo, 0), min(stop + halo, count)
    return slice(start, stop), slice(low, high), slice(start - low, stop - low)
