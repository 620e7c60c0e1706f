"""The shell around every attention core: projections, local term, output gate."""

from torch import Tensor, nn

from ..layers import DepthwiseConv, PointwiseConv
from .cores import build_core


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

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, H * W, d), a view."""
        return x.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
