"""Plain linear attention (Katharopoulos et al., ICML 2020, arXiv 2006.16236)."""

from torch import Tensor

from ravlt.ops.precision import at_least_float32, autocast_off
from ravlt.ops.rala import linear_attention_terms, rala

from .base import AttentionCore


class LinearCore(AttentionCore):
    """Linear attention with the feature map elu + 1; see :func:`ravlt.ops.rala.rala`.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        rope: Whether to rotate queries and keys in the numerator, as RALA does.

    Attributes:
        reweight: Whether a global query weighs the keys.
    """

    linear_in_N = True

    def __init__(self, dim: int, num_heads: int, rope: bool = False) -> None:
        super().__init__(dim, num_heads)
        self.rope = rope
        self.reweight = False
        # With RoPE only the numerator is rotated, so rows need not sum to 1 and weights
        # may be negative.
        self.row_stochastic = self.nonneg = not rope

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        return rala(q, k, v, hw, self.rope, self.reweight)

    def kv_buffer(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """Compute S, which holds all that outputs know of the values.

        Args:
            q: As in :meth:`forward`; RALA's weights depend on it.
            k: As in :meth:`forward`.
            v: As in :meth:`forward`.
            hw: As in :meth:`forward`.

        Returns:
            S of shape (B, heads, d, d), of keys by values, float32 or wider.
        """
        _, k, _ = linear_attention_terms(q, k, hw, self.rope, self.reweight)
        with autocast_off(k):
            return k.transpose(-2, -1) @ at_least_float32(v)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        terms = linear_attention_terms(q, k, hw, self.rope, self.reweight)
        q, k, denominator = terms
        with autocast_off(q):
            return q @ k.transpose(-2, -1) / denominator
