"""Gated linear attention's layer in vision: ViG's (Liao et al., arXiv 2405.18425)."""

import torch
from torch import Tensor, nn

from ...depthwise import DepthwiseConv
from ...layers import PointwiseConv
from ...precision import at_least_float32, autocast_off
from ..cores.gla import GLACore, rms_factor
from ..heads import join_heads, split_heads
from .base import PaperAttention


class NarrowGLACore(GLACore):
    """Queries and keys are half as wide as values."""

    key_share = 0.5


class GLAAttention(PaperAttention):
    """proj(core(q, k, v) s + norm(l) (1 - s)), s = sigmoid(W l + b), l = conv(x).

    l, the local branch, is a depthwise 3 x 3 convolution of the input; queries, keys,
    values and the forget gates are made of it. The norm is an RMS norm of each head
    with a gain, as at the core's end. The other products have no bias.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: The mechanism.
    """

    def __init__(self, dim: int, num_heads: int, core: NarrowGLACore) -> None:
        super().__init__(core, num_heads)
        self.local = DepthwiseConv(dim, 3, bias=False)
        self.qkv = PointwiseConv(dim, 2 * dim, bias=False)
        self.mixing = PointwiseConv(dim, dim)
        self.local_gain = nn.Parameter(torch.ones(dim // num_heads))
        self.proj = PointwiseConv(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        hw, half = (x.shape[1], x.shape[2]), x.shape[-1] // 2
        q, k, v = self.qkv(local).split((half, half, 2 * half), dim=-1)
        heads = (split_heads(t, self.num_heads) for t in (q, k, v))
        y = join_heads(self.core(*heads, hw, local), hw)
        share = self.mixing(local).sigmoid()
        return self.proj(y * share + self._normalised(local) * (1 - share))

    def _normalised(self, x: Tensor) -> Tensor:
        with autocast_off(x):
            heads = at_least_float32(x).unflatten(-1, (self.num_heads, -1))
            y = heads * rms_factor(heads) * self.local_gain.to(heads.dtype)
            return y.flatten(-2).to(x.dtype)
