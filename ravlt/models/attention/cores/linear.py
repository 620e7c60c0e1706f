"""Plain linear attention (Katharopoulos et al. 2020) with the feature map elu + 1."""

from torch import Tensor

from ..rope import rotate
from .base import AttentionCore, at_least_float32, autocast_off, elu1

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

    def token_weights(self, q: Tensor, k: Tensor) -> Tensor | float:
        """Gives the weight of each key, summing to 1, from mapped q and k.

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

    def dense(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        with autocast_off(q):
            q, k, denominator = self._prepare(q, k, hw)
            return (q @ k.transpose(-2, -1)) / denominator

    def _prepare(
        self, q: Tensor, k: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gives mapped (and rotated) q, weighted k, and the denominator (.., N, 1)."""
        q, k = elu1(at_least_float32(q)), elu1(at_least_float32(k))
        k = k * self.token_weights(q, k)
        denominator = q @ k.sum(-2, keepdim=True).transpose(-2, -1) + _EPS
        if self.rope:
            q, k = rotate(q, hw), rotate(k, hw)
        return q, k, denominator
