"""NormAttention of TransNormer (Qin et al., EMNLP 2022, arXiv 2210.10340)."""

import torch
from torch import Tensor

from ravlt.ops.elu1 import elu1
from ravlt.ops.precision import at_least_float32, autocast_off

from .base import AttentionCore


class NormCore(AttentionCore):
    """NormAttention: linear attention with an output norm in place of the denominator.

    o_i = phi(q_i)^T mean_j phi(k_j) v_j^T with phi = elu + 1. The output is
    o / (rms(o) + eps), with the root mean square over the channels of all heads
    (SimpleRMSNorm, without parameters).

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
    """

    row_stochastic = False
    nonneg = True
    linear_in_N = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        dtype = v.dtype
        with autocast_off(q):
            q, k, v = _mapped(q, k, v)
            y = q @ (k.transpose(-2, -1) @ v)
            y = y / rms_over_channels(y)
        return y.to(dtype)

    def kv_buffer(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """Compute mean_j phi(k_j) v_j^T, (B, heads, d, d), float32 or wider."""
        with autocast_off(q):
            _, k, v = _mapped(q, k, v)
            return k.transpose(-2, -1) @ v

    def dense(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        with autocast_off(q):
            q, k, v = _mapped(q, k, v)
            scores = q @ k.transpose(-2, -1)
            return scores / rms_over_channels(scores @ v)


def rms_over_channels(x: Tensor) -> Tensor:
    """Compute 1e-8 plus the root mean square over the channels of all heads.

    Args:
        x: A tensor of shape (B, heads, N, d).

    Returns:
        A tensor of shape (B, 1, N, 1).
    """
    channels = x.shape[1] * x.shape[3]
    norm = torch.linalg.vector_norm(x, dim=(1, 3), keepdim=True)
    return norm * channels**-0.5 + 1e-8


def _mapped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (at_least_float32(x) for x in (q, k, v))
    # The norm cancels the division by N, which keeps sums over tokens from overflowing.
    return elu1(q), elu1(k) / k.shape[-2], v
