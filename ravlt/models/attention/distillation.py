"""Hedgehog's distillation: feature maps learn softmax attention (arXiv 2402.04347)."""

import torch
from torch import Tensor

from ..precision import at_least_float32, autocast_off
from .cores.hedgehog import HedgehogCore


def distillation_loss(
    core: HedgehogCore, q: Tensor, k: Tensor, hw: tuple[int, int]
) -> Tensor:
    """Cross entropy between softmax attention and a core's, on the same q and k.

    -mean_i sum_j p_ij log A_ij with p = softmax_j(<q_i, k_j> / sqrt(d)), without
    rotation, of which the core has none; at best the entropy of p. Both matrices are
    explicit: choose small images. In a conversion q and k come from the layers of a
    trained network, one core learns from each, and then takes softmax's place.

    Args:
        core: The mechanism; only its feature map gets gradients.
        q: Queries of shape (B, heads, N, d).
        k: Keys of shape (B, heads, N, d).
        hw: Height and width of the grid.

    Returns:
        A scalar, float32 or wider: the mean over queries, heads and images.
    """
    with autocast_off(q):
        q, k = at_least_float32(q.detach()), at_least_float32(k.detach())
        target = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        weights = core.dense(q, k, k, hw)  # of any values
        # A weight that rounds to 0 would make the loss infinite.
        log_weights = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
        return -(target * log_weights).sum(-1).mean()
