"""CHELA's layer (Liu et al., ICML 2024, arXiv 2406.08128); experimental."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers import PointwiseConv
from ..cores.chela import ShortLongConv
from ..cores.norm import NormCore
from ..heads import join_heads, split_heads
from .base import PaperAttention


class CHELAAttention(PaperAttention):
    """proj(core(a_q z + b_q, a_k z + b_k, SiLU(W_v x)) SiLU(W_g u)), z = SiLU(W_z u).

    u is SiLU of a short and a long convolution of x; a and b are one number for each
    channel, as in Mega (arXiv 2209.10655). The core is NormAttention. As uncertain as
    the core named chela: the paper's equations were not at hand.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: The mechanism.
    """

    def __init__(self, dim: int, num_heads: int, core: NormCore) -> None:
        super().__init__(core, num_heads)
        self.conv = ShortLongConv(dim)
        self.z = PointwiseConv(dim, dim)
        self.v = PointwiseConv(dim, dim)
        self.gate = PointwiseConv(dim, dim)
        self.proj = PointwiseConv(dim, dim)
        self.scale_q = nn.Parameter(1 + 0.02 * torch.randn(dim))
        self.scale_k = nn.Parameter(1 + 0.02 * torch.randn(dim))
        self.shift_q = nn.Parameter(torch.zeros(dim))
        self.shift_k = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        hw = (x.shape[1], x.shape[2])
        u = F.silu(self.conv(x))
        z, v, gate = F.silu(self.z(u)), F.silu(self.v(x)), F.silu(self.gate(u))
        q, k = self.scale_q * z + self.shift_q, self.scale_k * z + self.shift_k
        y = self.core(*(split_heads(t, self.num_heads) for t in (q, k, v)), hw)
        return self.proj(join_heads(y, hw) * gate)

    def switch_to_deploy(self, norm: nn.LayerNorm) -> None:
        """Merges the convolutions and their norms, by the norms' running statistics."""
        super().switch_to_deploy(norm)
        self.conv = self.conv.merge()
