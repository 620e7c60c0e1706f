"""The shell around every attention core: projections, local term, output gate."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..depthwise import DepthwiseConv
from ..layers import PointwiseConv
from ..tiling import Region, Workspace, grid_tiles, row_tiles
from .cores import build_core
from .heads import join_heads, split_heads


class Attention(nn.Module):
    """proj((core(q, k, v) + LePE(v)) * o), with q, k, v, o = qkvo(x).

    The gate o is linear in the input and has no activation (paper, Section 3: the
    augmentation of the output's rank). LePE is a depthwise 5 x 5 convolution of v.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: Name of the core, or a dict with its name (``type``) and options.
    """

    def __init__(self, dim: int, num_heads: int, core: str | Mapping) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkvo = PointwiseConv(dim, 4 * dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.proj = PointwiseConv(dim, dim)
        self.core = build_core(core, dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens of a grid.

        Args:
            x: Normalised tokens of shape (B, H, W, C).

        Returns:
            A tensor of the same shape.
        """
        hw = (x.shape[1], x.shape[2])
        q, k, v, gate = self.qkvo(x).chunk(4, dim=-1)
        heads = (split_heads(t, self.num_heads) for t in (q, k, v))
        y = self.core(*heads, hw, *((x,) if self.core.needs_input else ()))
        y = join_heads(y, hw)
        return self.proj((y + self.lepe(v)) * gate)

    def tiles(
        self, x: Tensor, norm: nn.Module, workspace: Workspace
    ) -> Iterator[tuple[Region, Tensor]]:
        """Computes ``self(norm(x))`` for inference, tile by tile.

        All of ``x`` has been read when the first tile comes: it may then be changed.

        Args:
            x: Tokens of shape (B, H, W, C).
            norm: The norm before this layer.
            workspace: Size of tiles, and memory.

        Yields:
            The index of a tile in ``x``, and its part of the result.
        """
        hw = (x.shape[1], x.shape[2])
        q, k, v, gate, *normed = self._project(x, norm, workspace)
        heads = (split_heads(t, self.num_heads) for t in (q, k, v))
        y = join_heads(self.core.mix_(*heads, hw, workspace.side, *normed), hw)
        for tile, outer, inner in grid_tiles(*hw, workspace.side, halo=2):
            local = self.lepe(v[outer])[inner]
            yield tile, self.proj((y[tile].to(v.dtype) + local).mul_(gate[tile]))

    def _project(
        self, x: Tensor, norm: nn.Module, workspace: Workspace
    ) -> list[Tensor]:
        """Gives q, k (float32 or wider), v and gate, all of the shape of x.

        And norm(x), if the core needs it.
        """
        names = "qkvox" if self.core.needs_input else "qkvo"
        parts = []
        # Smaller tiles, because the product is wide: 4 C.
        for top, bottom in row_tiles(*x.shape[1:3], workspace.side // 2):
            normed = norm(x[:, top:bottom])
            tiles = (*self.qkvo(normed).chunk(4, dim=-1), normed)
            if not parts:
                narrow = tiles[0].dtype
                wide = torch.promote_types(narrow, torch.float32)
                dtypes = dict(q=wide, k=wide, v=narrow, o=narrow, x=normed.dtype)
                parts = [workspace.empty(name, x, dtypes[name]) for name in names]
            for part, tile in zip(parts, tiles[: len(parts)], strict=True):
                part[:, top:bottom] = tile
        return parts

    def switch_to_deploy(self, norm: nn.LayerNorm) -> None:
        """Folds scale and shift of the norm before this layer, and the core.

        A core that reads the layer's input needs both where they are.
        """
        if not self.core.needs_input:
            self.qkvo.fold_norm(norm)
        self.core.switch_to_deploy()
