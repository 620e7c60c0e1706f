"""Focused linear attention (FLatten, Han et al., ICCV 2023, arXiv 2308.00442)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import FeatureMapCore


class FocusedCore(FeatureMapCore):
    """Linear attention whose feature map sharpens: f_p(x) = |x| x^p / |x^p|, p = 3.

    x is (relu + 1e-6) / softplus(sigma), with a learned sigma for each channel; powers
    are taken element by element. As in the released code norms are over all channels,
    not head by head as the paper writes.

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
        # The largest channel cancels; without it the power of a token without a
        # positive channel would be 0 / 0.
        sharp = (x / x.amax((1, 3), keepdim=True)) ** self.power
        return sharp * (_norm(x) / _norm(sharp))


def _norm(x: Tensor) -> Tensor:
    """Over all channels of a token: heads, and features of a head."""
    return torch.linalg.vector_norm(x, dim=(1, 3), keepdim=True)
