"""Attention by feature maps: what most linear mechanisms have in common."""

from abc import abstractmethod

from torch import Tensor

from ravlt.ops.precision import at_least_float32, autocast_off

from .base import AttentionCore


class FeatureMapCore(AttentionCore):
    """y_i = phi(q_i)^T S / <phi(q_i), m>, with means S of phi(k) v^T, and m of phi(k).

    Sums are means, so that no size of image overflows, and run in float32. A mechanism
    says what its features are, and how it keeps the denominator from zero.

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
        """Maps queries and keys, float32 or wider.

        Args:
            q: As in :meth:`forward`.
            k: As in :meth:`forward`.
            v: As in :meth:`forward`.
            hw: As in :meth:`forward`.

        Returns:
            Two tensors of shape (B, heads, N, D), with any D.
        """

    def denominator(self, mean: Tensor) -> Tensor:
        """Keeps <phi(q_i), m> from zero; of shape (B, heads, N, 1)."""
        return mean + 1e-6

    def values(self, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """Gives what :meth:`dense` multiplies; of the shape of ``v``, most often it."""
        return v

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        hw: tuple[int, int],
        x: Tensor | None = None,
    ) -> Tensor:
        dtype = v.dtype
        with autocast_off(q):
            v = at_least_float32(v)
            q, k, denominator = self._prepare(q, k, v, hw)
            buffer = k.transpose(-2, -1) @ self.values(v, hw)
            y = (q @ buffer) / denominator
        return y.to(dtype)

    def kv_buffer(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        hw: tuple[int, int],
        x: Tensor | None = None,
    ) -> Tensor:
        """Gives S: all that outputs keep of the values.

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

    def dense(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        hw: tuple[int, int],
        x: Tensor | None = None,
    ) -> Tensor:
        with autocast_off(q):
            q, k, denominator = self._prepare(q, k, at_least_float32(v), hw)
            return (q @ k.transpose(-2, -1)) / denominator

    def _prepare(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gives mapped q, mapped k over N, and the denominator."""
        q, k = self.features(at_least_float32(q), at_least_float32(k), v, hw)
        k = k / k.shape[-2]
        mean = q @ k.sum(-2, keepdim=True).transpose(-2, -1)
        return q, k, self.denominator(mean)
