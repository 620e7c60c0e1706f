"""Rank-Augmented Linear Attention (CVPR 2025, arXiv 2411.07635)."""

from .linear import LinearCore


class RALACore(LinearCore):
    """RALA: linear attention whose keys are reweighted by a global query.

    Key j weighs alpha_j = N softmax_j(<g, phi(k_j)> / sqrt(d)) in the sums over tokens,
    with the mean g of the mapped queries (paper, Section 3: the augmentation of the KV
    buffer's rank). The factors N cancel, so :func:`ravlt.ops.rala.rala` uses the
    softmax itself. alpha also enters the denominator, and the rotation comes after it.
    The second half of RALA, the gate on the output, is in
    :class:`ravlt.models.ravlt.GatedAttention`.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        rope: Whether to rotate queries and keys in the numerator.
    """

    def __init__(self, dim: int, num_heads: int, rope: bool = True) -> None:
        super().__init__(dim, num_heads, rope)
        self.reweight = True
