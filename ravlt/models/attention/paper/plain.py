"""The plain layer of most papers: projections, the mechanism, a projection."""

from torch import Tensor

from ...layers import PointwiseConv
from ..cores import AttentionCore
from ..heads import join_heads, split_heads
from .base import PaperAttention


class PlainAttention(PaperAttention):
    """proj(core(q, k, v)) with q, k, v = qkv(x): no local term, no gate.

    All there is around softmax, linear, cosFormer, TransNormer's two, Feature Fixation
    and Hedgehog; others extend it.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: The mechanism; its width is that of queries, keys and values.
    """

    def __init__(self, dim: int, num_heads: int, core: AttentionCore) -> None:
        super().__init__(core, num_heads)
        self.qkv = PointwiseConv(dim, 3 * core.dim)
        self.proj = PointwiseConv(core.dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.mix(*self.qkv(x).chunk(3, dim=-1)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Runs the core on grids of shape (B, H, W, core.dim)."""
        hw = (v.shape[1], v.shape[2])
        heads = (split_heads(t, self.num_heads) for t in (q, k, v))
        return join_heads(self.core(*heads, hw), hw)
