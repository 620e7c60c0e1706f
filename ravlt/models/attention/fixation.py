"""Feature fixation (Linear Video Transformer, Lu et al. 2022, arXiv 2210.08164)."""

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from .features import FeatureMapCore
from .shift import spatial_shift


class FixationCore(FeatureMapCore):
    """Linear attention whose features are gated by the token's query, key and value.

    phi(x) = relu(x) + 1/sqrt(d). The features are q^ = sigmoid(G_q c) phi(q) and
    k^ = sigmoid(G_k c) phi(k), with c = [phi(q), phi(k), v] of the same token. All
    heads share G_q and G_k. Both gates start near 1/2 everywhere, and a constant gate
    cancels.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        shift: Whether keys and values first take channels from neighbouring tokens
            (:func:`ravlt.models.attention.shift.spatial_shift`). :meth:`dense` then
            multiplies the shifted values.
    """

    def __init__(self, dim: int, num_heads: int, shift: bool = False) -> None:
        super().__init__(dim, num_heads)
        self.shift = shift
        head_dim = dim // num_heads
        self.gate_q = nn.Linear(3 * head_dim, head_dim)
        self.gate_k = nn.Linear(3 * head_dim, head_dim)
        for gate in (self.gate_q, self.gate_k):
            trunc_normal_(gate.weight, std=0.02)
            nn.init.zeros_(gate.bias)

    def features(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        v = self.values(v, hw)
        if self.shift:
            k = spatial_shift(k, hw)
        offset = q.shape[-1] ** -0.5
        q, k = q.relu() + offset, k.relu() + offset
        context = torch.cat((q, k, v), dim=-1)
        return _gate(self.gate_q, context) * q, _gate(self.gate_k, context) * k

    def values(self, v: Tensor, hw: tuple[int, int]) -> Tensor:
        return spatial_shift(v, hw) if self.shift else v


def _gate(layer: nn.Linear, context: Tensor) -> Tensor:
    # The core computes in float32 or wider, even if the module is in half precision.
    weight, bias = layer.weight.to(context.dtype), layer.bias.to(context.dtype)
    return nn.functional.linear(context, weight, bias).sigmoid()
