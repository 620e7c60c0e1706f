"""Rank-Augmented Linear Attention (arXiv 2411.07635), and plain linear attention."""

import torch
from torch import Tensor

from ..dispatch import is_eager
from ..gpu import HAS_TRITON, runs_as_kernel
from ..precision import autocast_off
from . import chunked, naive

if HAS_TRITON:
    from . import triton

__all__ = ["linear_attention_terms", "rala"]


def rala(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    hw: tuple[int, int],
    rope: bool = True,
    reweight: bool = True,
) -> Tensor:
    """Compute y_i = (R_i phi(q_i))^T S / (<phi(q_i), m> + 1e-6), phi = elu + 1.

    S = sum_j w_j R_j phi(k_j) v_j^T and m = sum_j w_j phi(k_j), with weights of the
    tokens that sum to 1: w = softmax_j(<g, phi(k_j)> / sqrt(d)) with the global query
    g = mean_i phi(q_i) (RALA), or w_j = 1 / N (plain linear attention). R rotates by
    the token's position. Sums run in float32 or wider, also under autocast (not in
    TorchScript, which cannot turn autocast off: cast scripted models instead).

    Args:
        q: Queries of shape (B, heads, N, d), before the feature map.
        k: Keys of shape (B, heads, N, d).
        v: Values of shape (B, heads, N, d).
        hw: Height and width of the grid; N = H * W, row by row.
        rope: Whether to rotate.
        reweight: Whether to weigh the keys by the global query.

    Returns:
        A tensor of shape (B, heads, N, d) in the dtype of ``v``.
    """
    if torch.jit.is_scripting():
        return naive.rala(q, k, v, hw, rope, reweight)
    if runs_as_kernel(q, k, v) and triton.supports(q, k, v):
        return triton.rala(q, k, v, hw, rope, reweight)
    if is_eager(q) and not torch.is_grad_enabled():
        # In place on copies: half of the passes, and less memory.
        dtype = torch.promote_types(q.dtype, torch.float32)
        contiguous = torch.contiguous_format
        q, k = (t.to(dtype, copy=True, memory_format=contiguous) for t in (q, k))
        return chunked.rala_(q, k, v, hw, [(0, hw[0])], rope, reweight).to(v.dtype)
    with autocast_off(q):
        return naive.rala(q, k, v, hw, rope, reweight)


def linear_attention_terms(
    q: Tensor, k: Tensor, hw: tuple[int, int], rope: bool = True, reweight: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the terms of :func:`rala`, for analysis.

    Args:
        q: As in :func:`rala`.
        k: As in :func:`rala`.
        hw: As in :func:`rala`.
        rope: As in :func:`rala`.
        reweight: As in :func:`rala`.

    Returns:
        R_i phi(q_i) and w_j R_j phi(k_j), both (B, heads, N, d), and the denominators
        (B, heads, N, 1), float32 or wider.
    """
    with autocast_off(q):
        return naive.terms(q, k, hw, rope, reweight)
