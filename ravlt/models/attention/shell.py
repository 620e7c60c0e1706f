"""The shell around every attention core: projections, local term, output gate."""

from collections.abc import Iterator

from torch import Tensor, nn

from ..layers import DepthwiseConv, PointwiseConv
from ..tiling import Region, grid_tiles, row_tiles
from .cores import build_core
from .cores.base import at_least_float32


class Attention(nn.Module):
    """proj((core(q, k, v) + LePE(v)) * o), with q, k, v, o = qkvo(x).

    The gate o is linear in the input and has no activation (paper, Section 3: the
    augmentation of the output's rank). LePE is a depthwise 5 x 5 convolution of v.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        attn_type: Name of the core.
    """

    def __init__(self, dim: int, num_heads: int, attn_type: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkvo = PointwiseConv(dim, 4 * dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.proj = PointwiseConv(dim, dim)
        self.core = build_core(attn_type, dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens of a grid.

        Args:
            x: Normalised tokens of shape (B, H, W, C).

        Returns:
            A tensor of the same shape.
        """
        hw = (x.shape[1], x.shape[2])
        q, k, v, gate = self.qkvo(x).chunk(4, dim=-1)
        y = self.core(*(self._split_heads(t) for t in (q, k, v)), hw)
        y = y.transpose(1, 2).reshape(v.shape)
        return self.proj((y + self.lepe(v)) * gate)

    def tiles(
        self, x: Tensor, norm: nn.Module, side: int
    ) -> Iterator[tuple[Region, Tensor]]:
        """Computes ``self(norm(x))`` for inference, tile by tile.

        All of ``x`` has been read when the first tile comes: it may then be changed.

        Args:
            x: Tokens of shape (B, H, W, C).
            norm: The norm before this layer.
            side: Tokens along a side of a tile.

        Yields:
            The index of a tile in ``x``, and its part of the result.
        """
        hw = (x.shape[1], x.shape[2])
        q, k, v, gate = self._project(x.flatten(1, 2), norm, hw, side)
        y = self.core.mix_(*(self._split_heads(t) for t in (q, k, v)), hw, side)
        y = y.transpose(1, 2).reshape(x.shape)
        v, gate = v.view(x.shape), gate.view(x.shape)
        for tile, outer, inner in grid_tiles(*hw, side, halo=2):
            local = self.lepe(v[outer])[inner]
            yield tile, self.proj((y[tile].to(v.dtype) + local).mul_(gate[tile]))

    def _project(
        self, x: Tensor, norm: nn.Module, hw: tuple[int, int], side: int
    ) -> list[Tensor]:
        """Gives q, k (float32 or wider), v and the gate, each (B, N, C), contiguous."""
        parts = []
        for _, tokens in row_tiles(hw, side):
            qkvo = self.qkvo(norm(x[:, tokens])).chunk(4, dim=-1)
            if not parts:
                wide = at_least_float32(qkvo[0][:0]).dtype
                dtypes = (wide, wide, qkvo[0].dtype, qkvo[0].dtype)
                parts = [x.new_empty(x.shape, dtype=dtype) for dtype in dtypes]
            for part, tile in zip(parts, qkvo, strict=True):
                part[:, tokens] = tile
        return parts

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, ..., C) -> (B, heads, N, d), a view."""
        x = x.flatten(1, -2).unflatten(-1, (self.num_heads, -1))
        return x.transpose(1, 2)
