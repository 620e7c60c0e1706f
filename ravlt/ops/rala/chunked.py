"""RALA in place and in chunks of tokens, for inference in bounded memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..elu1 import elu1_
from ..precision import at_least_float32, autocast_off
from ..rotary import rotary_tables, rotate_
from .naive import denominators


def rala_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    hw: tuple[int, int],
    chunks: Sequence[tuple[int, int]],
    rope: bool = True,
    reweight: bool = True,
) -> Tensor:
    """Compute :func:`ravlt.ops.rala.rala` in the memory of ``q``; overwrite ``k``.

    Three passes over the chunks: the global query; weights of the tokens and the sums
    S and m; outputs. Each pass touches tensors of the size of one chunk.

    Args:
        q: As in :func:`ravlt.ops.rala.rala`, but float32 or wider.
        k: As in :func:`ravlt.ops.rala.rala`, but float32 or wider.
        v: As in :func:`ravlt.ops.rala.rala`.
        hw: As in :func:`ravlt.ops.rala.rala`.
        chunks: First row of each chunk, and the one after its last.
        rope: As in :func:`ravlt.ops.rala.rala`.
        reweight: As in :func:`ravlt.ops.rala.rala`.

    Returns:
        ``q``, which holds the outputs in its own dtype.
    """
    width = hw[1]
    pieces = [slice(top * width, bottom * width) for top, bottom in chunks]
    rows, cols = rotary_tables(q, hw) if rope else (None, None)
    with autocast_off(q):
        q_sum = torch.zeros_like(q[..., :1, :])
        for tokens in pieces:
            elu1_(k[..., tokens, :])
            q_sum += elu1_(q[..., tokens, :]).sum(-2, keepdim=True)
        if reweight:
            g = q_sum / q.shape[-2] * q.shape[-1] ** -0.5
            weights = (k @ g.transpose(-2, -1)).softmax(-2)
        k_sum, buffer = torch.zeros_like(q_sum), 0.0
        for (top, bottom), tokens in zip(chunks, pieces, strict=True):
            k_chunk = k[..., tokens, :]
            if reweight:
                k_chunk.mul_(weights[..., tokens, :])
            else:
                k_chunk.div_(q.shape[-2])
            k_sum += k_chunk.sum(-2, keepdim=True)
            if rope:
                rotate_(k_chunk, rows[top:bottom], cols)
            v_chunk = at_least_float32(v[..., tokens, :])
            buffer = buffer + k_chunk.transpose(-2, -1) @ v_chunk
        for (top, bottom), tokens in zip(chunks, pieces, strict=True):
            q_chunk = q[..., tokens, :]
            denominator = denominators(q_chunk, k_sum)
            if rope:
                rotate_(q_chunk, rows[top:bottom], cols)
            torch.div(q_chunk @ buffer, denominator, out=q_chunk)
    return q
