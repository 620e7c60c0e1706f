"""Linear attention with a feature map: the base class of most mechanisms."""

from abc import abstractmethod

from torch import Tensor

from ravlt.ops.precision import at_least_float32, autocast_off

from .base import AttentionCore


class FeatureMapCore(AttentionCore):
    """Linear attention y_i = phi(q_i)^T S / <phi(q_i), m>.

    S is the mean of phi(k_j) v_j^T over the tokens, and m the mean of phi(k_j). Means
    do not overflow on large images, as sums would. Both are computed in float32 or
    wider. A subclass defines the features, and may define how the denominator stays
    above zero.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
    """

    row_stochastic = True
    nonneg = True
    linear_in_N = True

    @abstractmethod
    def features(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Map queries and keys to features.

        Args:
            q: As in :meth:`forward`, float32 or wider.
            k: As in :meth:`forward`, float32 or wider.
            v: As in :meth:`forward`, float32 or wider.
            hw: As in :meth:`forward`.

        Returns:
            phi(q) and phi(k) of shape (B, heads, N, D), for any D.
        """

    def denominator(self, mean: Tensor) -> Tensor:
        """Return <phi(q_i), m> of shape (B, heads, N, 1), kept above zero."""
        return mean + 1e-6

    def values(self, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """Return the values that :meth:`dense` multiplies: ``v``, unless overridden."""
        return v

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        dtype = v.dtype
        with autocast_off(q):
            v = at_least_float32(v)
            q, k, denominator = self._prepare(q, k, v, hw)
            buffer = k.transpose(-2, -1) @ self.values(v, hw)
            y = (q @ buffer) / denominator
        return y.to(dtype)

    def kv_buffer(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """Compute S, which holds all that outputs know of the values.

        Args:
            q: As in :meth:`forward`.
            k: As in :meth:`forward`.
            v: As in :meth:`forward`.
            hw: As in :meth:`forward`.

        Returns:
            S of shape (B, heads, D, d), of features by values, float32 or wider.
        """
        with autocast_off(q):
            v = at_least_float32(v)
            _, k, _ = self._prepare(q, k, v, hw)
            return k.transpose(-2, -1) @ self.values(v, hw)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        with autocast_off(q):
            q, k, denominator = self._prepare(q, k, at_least_float32(v), hw)
            return (q @ k.transpose(-2, -1)) / denominator

    def _prepare(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute phi(q), phi(k) / N and the denominator."""
        q, k = self.features(at_least_float32(q), at_least_float32(k), v, hw)
        k = k / k.shape[-2]
        mean = q @ k.sum(-2, keepdim=True).transpose(-2, -1)
        return q, k, self.denominator(mean)
