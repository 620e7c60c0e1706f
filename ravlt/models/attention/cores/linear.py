"""Plain linear attention (Katharopoulos et al. 2020) with the feature map elu + 1."""

import torch
from torch import Tensor

from ...precision import at_least_float32, autocast_off
from ...tiling import row_tiles
from ..rope import rotate, rotate_
from .base import AttentionCore, elu1, elu1_

_EPS = 1e-6  # on the mean denominator


class LinearCore(AttentionCore):
    """Linear attention: y_i = phi(q_i)^T S / (<phi(q_i), m> + eps).

    With token weights w that sum to 1, S = sum_j w_j phi(k_j) v_j^T and
    m = sum_j w_j phi(k_j). Here w_j = 1 / N; RALA learns to do better. Sums are
    means, so that no size of image overflows, and run in float32.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        rope: Whether to rotate queries and keys in the numerator, as RALA does.
            The denominator sees them un-rotated.
    """

    linear_in_N = True

    def __init__(self, dim: int, num_heads: int, rope: bool = False) -> None:
        super().__init__(dim, num_heads)
        self.rope = rope
        # A rotated numerator over an un-rotated denominator keeps neither.
        self.row_stochastic = self.nonneg = not rope

    def token_weights(self, q_mean: Tensor, k: Tensor) -> Tensor | float:
        """Gives the weight of each key; they sum to 1.

        Args:
            q_mean: Mean of the mapped queries, (B, heads, 1, d).
            k: Mapped keys, (B, heads, N, d).

        Returns:
            A tensor of shape (B, heads, N, 1), or the one number that all share.
        """
        return 1.0 / k.shape[-2]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        dtype = v.dtype
        with autocast_off(q):
            q, k, denominator = self._prepare(q, k, hw)
            buffer = k.transpose(-2, -1) @ at_least_float32(v)
            y = (q @ buffer) / denominator
        return y.to(dtype)

    def kv_buffer(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """Gives S: all that outputs keep of the values.

        Args:
            q: As in :meth:`forward`; RALA's weights look at it.
            k: As in :meth:`forward`.
            v: As in :meth:`forward`.
            hw: As in :meth:`forward`.

        Returns:
            S of shape (B, heads, d, d), of keys by values, float32 or wider.
        """
        with autocast_off(q):
            _, k, _ = self._prepare(q, k, hw)
            return k.transpose(-2, -1) @ at_least_float32(v)

    def mix_(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], side: int
    ) -> Tensor:
        width = hw[1]
        tiles = [
            (top, slice(top * width, bottom * width))
            for top, bottom in row_tiles(*hw, side)
        ]
        with autocast_off(q):
            q_sum = k_sum = buffer = 0.0
            for _, tokens in tiles:
                elu1_(k[..., tokens, :])
                q_sum = q_sum + elu1_(q[..., tokens, :]).sum(-2, keepdim=True)
            weights = self.token_weights(q_sum / q.shape[-2], k)
            for top, tokens in tiles:
                k_tile = k[..., tokens, :]
                one = isinstance(weights, float)
                k_tile.mul_(weights if one else weights[..., tokens, :])
                k_sum = k_sum + k_tile.sum(-2, keepdim=True)
                if self.rope:
                    rotate_(k_tile, hw, top)
                v_tile = at_least_float32(v[..., tokens, :])
                buffer = buffer + k_tile.transpose(-2, -1) @ v_tile
            for top, tokens in tiles:
                q_tile = q[..., tokens, :]
                denominator = q_tile @ k_sum.transpose(-2, -1) + _EPS
                if self.rope:
                    rotate_(q_tile, hw, top)
                torch.div(q_tile @ buffer, denominator, out=q_tile)
        return q

    def dense(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        with autocast_off(q):
            q, k, denominator = self._prepare(q, k, hw)
            return (q @ k.transpose(-2, -1)) / denominator

    def _prepare(
        self, q: Tensor, k: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gives mapped (and rotated) q, weighted k, and the denominator (.., N, 1)."""
        q, k = elu1(at_least_float32(q)), elu1(at_least_float32(k))
        k = k * self.token_weights(q.mean(-2, keepdim=True), k)
        denominator = q @ k.sum(-2, keepdim=True).transpose(-2, -1) + _EPS
        if self.rope:
            q, k = rotate(q, hw), rotate(k, hw)
        return q, k, denominator
