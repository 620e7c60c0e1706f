"""Loss that trains Hedgehog's feature maps on softmax attention (arXiv 2402.04347)."""

import torch
from torch import Tensor

from ravlt.models.attention.hedgehog import HedgehogCore
from ravlt.ops.precision import at_least_float32, autocast_off


def distillation_loss(
    core: HedgehogCore, q: Tensor, k: Tensor, hw: tuple[int, int]
) -> Tensor:
    """Compute the cross entropy between softmax attention and a core's weights.

    The loss is -mean_i sum_j p_ij log A_ij with p = softmax_j(<q_i, k_j> / sqrt(d)) and
    the core's weights A on the same q and k. Its minimum is the entropy of p. Neither
    rotates q and k, since the core has no RoPE. Both N x N matrices are explicit: use
    small images. To convert a trained network, train one core on q and k of each layer;
    the core then replaces softmax in that layer.

    Args:
        core: Mechanism to train; only its feature map gets gradients.
        q: Queries of shape (B, heads, N, d).
        k: Keys of shape (B, heads, N, d).
        hw: Height and width of the grid, H * W = N.

    Returns:
        A scalar in float32 or wider, averaged over queries, heads and images.
    """
    with autocast_off(q):
        q, k = at_least_float32(q.detach()), at_least_float32(k.detach())
        target = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        weights = core.dense(q, k, k, hw)  # weights do not depend on the values
        # The logarithm of a weight that rounds to 0 would make the loss infinite.
        log_weights = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
        return -(target * log_weights).sum(-1).mean()
