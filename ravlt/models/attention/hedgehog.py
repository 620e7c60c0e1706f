"""Hedgehog (Zhang et al., ICLR 2024, arXiv 2402.04347)."""

import torch
from torch import Tensor, nn

from ravlt.errors import RAVLTError

from .features import FeatureMapCore

NORMALISATIONS = ("exp", "softmax", "softmax_half")


class HedgehogCore(FeatureMapCore):
    """Linear attention whose feature map learns to be as spiky as softmax.

    phi(x) = [exp(W x + b), exp(-(W x + b))]. Each head has its own W and b for queries
    and for keys. W starts as the identity. Shifts that cancel keep exp in range.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        normalisation: 'exp' is the paper's definition. Released variants take the
            softmax over the 2 d features of a token ('softmax') or over each half of
            them ('softmax_half'). These two weigh keys differently from 'exp'.

    Raises:
        RAVLTError: If the normalisation is unknown.
    """

    def __init__(self, dim: int, num_heads: int, normalisation: str = "exp") -> None:
        super().__init__(dim, num_heads)
        if normalisation not in NORMALISATIONS:
            raise RAVLTError(
                f"normalisation='{normalisation}' is unknown; use one of "
                f"{NORMALISATIONS}."
            )
        self.normalisation = normalisation
        head_dim = dim // num_heads
        identity = torch.eye(head_dim).repeat(num_heads, 1, 1)
        self.weight_q = nn.Parameter(identity.clone())
        self.weight_k = nn.Parameter(identity.clone())
        self.bias_q = nn.Parameter(torch.zeros(num_heads, 1, head_dim))
        self.bias_k = nn.Parameter(torch.zeros(num_heads, 1, head_dim))

    def features(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        q = q @ self.weight_q.to(q.dtype).transpose(-2, -1) + self.bias_q.to(q.dtype)
        k = k @ self.weight_k.to(k.dtype).transpose(-2, -1) + self.bias_k.to(k.dtype)
        if self.normalisation == "softmax_half":
            halves = ((x.softmax(-1), (-x).softmax(-1)) for x in (q, k))
            return tuple(torch.cat(pair, dim=-1) for pair in halves)
        q, k = torch.cat((q, -q), dim=-1), torch.cat((k, -k), dim=-1)
        if self.normalisation == "softmax":
            return q.softmax(-1), k.softmax(-1)
        # The maximum of each feature over the keys moves from keys to queries. Then the
        # maximum over each query's features is subtracted, which cancels. All exponents
        # are then at most 0, so exp does not overflow. For every query, one key and one
        # feature have a product of 1, so no denominator is below 1 / N.
        k_max = k.amax(-2, keepdim=True).detach()
        q, k = q + k_max, k - k_max
        return (q - q.amax(-1, keepdim=True).detach()).exp(), k.exp()

    def denominator(self, mean: Tensor) -> Tensor:
        return mean.clamp(min=1e-12)  # an added eps would not cancel, unlike the shifts
