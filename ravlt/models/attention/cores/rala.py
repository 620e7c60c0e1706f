"""Rank-Augmented Linear Attention (arXiv 2411.07635)."""

from torch import Tensor

from .linear import LinearCore


class RALACore(LinearCore):
    """RALA: linear attention whose keys are reweighted by a global query.

    The global query g is the mean of the mapped queries; key j weighs
    alpha_j = N softmax_j(<g, phi(k_j)> / sqrt(d)) in the sums over tokens (paper,
    Section 3: the augmentation of the KV buffer's rank). The factors N cancel, so
    the weights here are the softmax itself. alpha also enters the denominator, and
    the rotation comes after it. The second half of RALA, the gate on the output, is
    the shell's.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        rope: Whether to rotate queries and keys in the numerator.
    """

    def __init__(self, dim: int, num_heads: int, rope: bool = True) -> None:
        super().__init__(dim, num_heads, rope)

    def token_weights(self, q_mean: Tensor, k: Tensor) -> Tensor:
        g = q_mean * k.shape[-1] ** -0.5
        return (k @ g.transpose(-2, -1)).softmax(-2)
