"""DiagAttention of TransNormer (Qin et al., EMNLP 2022, arXiv 2210.10340)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ravlt.errors import RAVLTError
from ravlt.ops.precision import at_least_float32, autocast_off

from .base import AttentionCore
from .norm import rms_over_channels

ACTIVATIONS = ("relu", "softmax")
_WINDOW = 8  # tokens along one side of a block; a block has 64


class DiagCore(AttentionCore):
    """DiagAttention: attention within blocks of 8 x 8 tokens.

    With ReLU, o_i = sum_j relu(<q_i, k_j> / sqrt(d)) v_j, normalised as in
    NormAttention. Softmax needs no norm. Blocks at the border are smaller.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        activation: 'relu' or 'softmax'.

    Raises:
        RAVLTError: If the activation is unknown.
    """

    nonneg = True
    linear_in_N = True

    def __init__(self, dim: int, num_heads: int, activation: str = "relu") -> None:
        super().__init__(dim, num_heads)
        if activation not in ACTIVATIONS:
            raise RAVLTError(
                f"activation='{activation}' is unknown; use one of {ACTIVATIONS}."
            )
        self.activation = activation
        self.row_stochastic = activation == "softmax"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        dtype = v.dtype
        with autocast_off(q):
            q, k, v = (at_least_float32(x) for x in (q, k, v))
            real = to_blocks(torch.ones_like(q[:1, :1, :, :1]), hw)
            scores = self._scores(*(to_blocks(x, hw) for x in (q, k)), real)
            y = from_blocks(scores @ to_blocks(v, hw), hw)
            if self.activation == "relu":
                y = y / rms_over_channels(y)
        return y.to(dtype)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        with autocast_off(q):
            q, k, v = (at_least_float32(x) for x in (q, k, v))
            tokens = torch.arange(hw[0] * hw[1], device=q.device)
            rows, cols = tokens // hw[1] // _WINDOW, tokens % hw[1] // _WINDOW
            same = (rows[:, None] == rows) & (cols[:, None] == cols)
            scores = self._scores(q, k, same)
            if self.activation == "relu":
                scores = scores / rms_over_channels(scores @ v)
            return scores

    def _scores(self, q: Tensor, k: Tensor, real: Tensor) -> Tensor:
        """Compute scores within blocks.

        Args:
            q: Queries of shape (..., N, d).
            k: Keys of shape (..., N, d).
            real: Keys that are not padding, (..., N, 1); or a boolean mask (N, N) of
                pairs that share a block.
        """
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        if real.dtype != torch.bool:
            real = real.transpose(-2, -1) > 0
        if self.activation == "relu":
            return scores.relu() * real
        return scores.masked_fill(~real, -torch.inf).softmax(-1)


def to_blocks(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Split (B, heads, H * W, d) into (B, heads, blocks, 64, d), padded with zeros."""
    height, width = hw
    x = x.unflatten(2, hw)
    x = F.pad(x, (0, 0, 0, -width % _WINDOW, 0, -height % _WINDOW))
    x = x.unflatten(3, (-1, _WINDOW)).unflatten(2, (-1, _WINDOW))
    return x.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def from_blocks(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Invert :func:`to_blocks` and remove its padding."""
    height, width = hw
    across = -(-width // _WINDOW)
    x = x.unflatten(3, (_WINDOW, _WINDOW)).unflatten(2, (-1, across))
    x = x.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return x[:, :, :height, :width].flatten(2, 3)
