"""Focused linear attention (FLatten, Han et al., ICCV 2023, arXiv 2308.00442)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ravlt.ops.precision import at_least_float32, autocast_off

from ..layers import DepthwiseConv
from .base import PlainAttention
from .features import FeatureMapCore

_GRID = 14  # entries along one side of the position table


class FocusedCore(FeatureMapCore):
    """Linear attention with a sharpening feature map f_p(x) = |x| x^p / |x^p|, p = 3.

    x is (relu + 1e-6) / softplus(sigma), with a learned sigma for each channel. Powers
    are elementwise. Norms run over all channels, as in the released code; the paper
    writes them for each head.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        power: Exponent, p.
    """

    def __init__(self, dim: int, num_heads: int, power: float = 3.0) -> None:
        super().__init__(dim, num_heads)
        self.power = power
        self.sigma = nn.Parameter(torch.zeros(1, 1, dim))

    def features(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        scale = F.softplus(self.sigma.to(q.dtype)).view(self.num_heads, 1, -1)
        return self._focus(q, scale), self._focus(k, scale)

    def _focus(self, x: Tensor, scale: Tensor) -> Tensor:
        x = (x.relu() + 1e-6) / scale
        # The division by the largest channel cancels in f. Without it, large exponents
        # would underflow for a token without a positive channel, and f be 0 / 0.
        sharp = (x / x.amax((1, 3), keepdim=True)) ** self.power
        return sharp * (_norm(x) / _norm(sharp))


class FocusedAttention(PlainAttention):
    """FLatten's attention layer: proj(core(q, k + P, v) + DWC(v)).

    P is a learned 14 x 14 table of position embeddings, resized (bicubic) to the token
    grid. The paper's tables have the grid size of a classifier and fit no other size.
    DWC is a depthwise 5 x 5 convolution whose kernels all heads share.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: The mechanism.
    """

    def __init__(self, dim: int, num_heads: int, core: FocusedCore) -> None:
        super().__init__(dim, num_heads, core)
        self.positions = nn.Parameter(torch.zeros(1, dim, _GRID, _GRID))
        self.dwc = DepthwiseConv(dim // num_heads, 5)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = k + self._resized((v.shape[1], v.shape[2])).to(k.dtype)
        return super().mix(q, k, v) + self._local(v)

    def _resized(self, hw: tuple[int, int]) -> Tensor:
        with autocast_off(self.positions):
            table = at_least_float32(self.positions)
            return F.interpolate(table, hw, mode="bicubic").permute(0, 2, 3, 1)

    def _local(self, v: Tensor) -> Tensor:
        """Convolve the values of each head."""
        heads = v.unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)
        local = self.dwc(heads.flatten(0, 1)).unflatten(0, heads.shape[:2])
        return local.permute(0, 2, 3, 1, 4).flatten(-2)


def _norm(x: Tensor) -> Tensor:
    """Compute the norm over all channels of a token, (B, 1, N, 1)."""
    return torch.linalg.vector_norm(x, dim=(1, 3), keepdim=True)
