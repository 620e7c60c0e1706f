"""Vicinity attention (Sun et al., TPAMI 2023, arXiv 2206.10552)."""

import torch
from torch import Tensor, nn

from ravlt.errors import RAVLTError
from ravlt.ops.precision import at_least_float32, autocast_off

from ..layers import PointwiseConv
from .base import PlainAttention
from .cosformer import modulate, quarter_waves
from .features import FeatureMapCore


class VicinityCore(FeatureMapCore):
    """ReLU attention, reweighted in favour of near tokens.

    A pair of tokens dr rows and dc columns apart is reweighted by
    cos(pi/2 dr/H) + cos(pi/2 dc/W). The reweighting factorizes into 4 d features of
    each token.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        legacy_clamp: Whether to clamp the magnitude of every intermediate result to
            1e-4 .. 1e4, as the released code does. With many tokens the outputs are
            then no longer normalised. There is no dense form.
    """

    def __init__(self, dim: int, num_heads: int, legacy_clamp: bool = False) -> None:
        super().__init__(dim, num_heads)
        self.legacy_clamp = legacy_clamp
        self.row_stochastic = not legacy_clamp

    def features(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        height, width = hw
        rows = quarter_waves(height, q)[:, None].expand(height, width, 2)
        cols = quarter_waves(width, q)[None].expand(height, width, 2)
        waves = torch.cat((rows, cols), dim=-1).flatten(0, 1)
        return modulate(q.relu(), waves), modulate(k.relu(), waves)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        if not self.legacy_clamp:
            return super().forward(q, k, v, hw)
        dtype = v.dtype
        with autocast_off(q):
            q, k, v = (at_least_float32(x) for x in (q, k, v))
            q, k = self.features(q, k, v, hw)
            buffer = _clamp(k.transpose(-2, -1) @ v)
            sums = q @ k.sum(-2, keepdim=True).transpose(-2, -1) + 1e-4
            y = _clamp(_clamp(q @ buffer) * _clamp(1 / sums))
        return y.to(dtype)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        if self.legacy_clamp:
            raise RAVLTError(
                "legacy_clamp=True is not a linear map of v, so that it has no dense "
                "form; set legacy_clamp=False."
            )
        return super().dense(q, k, v, hw)


class VicinityAttention(PlainAttention):
    """Vicinity attention on half of the channels, with a channel gate on the output.

    Feature reduction: queries, keys and values have C / 2 channels. Feature preserving
    connection: the output has C channels again and is multiplied by 1 + s, with
    s = sigmoid(W_2 relu(W_1 mean(x))) for each image and channel.

    Args:
        dim: Channels, C.
        num_heads: Number of heads; a head has C / (2 heads) channels.
        core: The mechanism, with C / 2 channels.
    """

    def __init__(self, dim: int, num_heads: int, core: VicinityCore) -> None:
        super().__init__(dim, num_heads, core)
        self.preserve = nn.Sequential(
            PointwiseConv(dim, dim, bias=False),
            nn.ReLU(),
            PointwiseConv(dim, dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.preserve(x.mean((1, 2), keepdim=True))
        return super().forward(x) * (1 + gate)


def _clamp(x: Tensor) -> Tensor:
    return x.sign() * x.abs().clamp(1e-4, 1e4)
