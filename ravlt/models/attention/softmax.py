"""Softmax attention; stages 3 and 4 of the released network use it with RoPE."""

import torch.nn.functional as F
from torch import Tensor

from ravlt.ops.precision import at_least_float32, autocast_off
from ravlt.ops.rotary import rotate, rotate_queries_and_keys

from .base import AttentionCore


class SoftmaxCore(AttentionCore):
    """Softmax attention: A = softmax_j(<R_i q_i, R_j k_j> / sqrt(d)).

    It calls ``scaled_dot_product_attention``, whose memory is linear in the tokens; its
    time is quadratic. Only the rotation needs float32.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        rope: Whether to rotate queries and keys.
    """

    row_stochastic = True
    nonneg = True
    linear_in_N = False

    def __init__(self, dim: int, num_heads: int, rope: bool = True) -> None:
        super().__init__(dim, num_heads)
        self.rope = rope

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        if self.rope:
            q, k = rotate_queries_and_keys(q, k, hw)
        # Tiles give queries and keys in float32, whatever the values are.
        return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        with autocast_off(q):
            q, k = at_least_float32(q), at_least_float32(k)
            if self.rope:
                q, k = rotate(q, hw), rotate(k, hw)
            return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
