"""RALA in plain PyTorch: the definition that every other form is held to."""

from torch import Tensor

from ..elu1 import elu1
from ..precision import at_least_float32
from ..rotary import rotary_tables, rotate


def rala(
    q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], rope: bool, reweight: bool
) -> Tensor:
    """Compute :func:`ravlt.ops.rala.rala`."""
    q, k, denominator = terms(q, k, hw, rope, reweight)
    buffer = k.transpose(-2, -1) @ at_least_float32(v)
    return (q @ buffer / denominator).to(v.dtype)


def terms(
    q: Tensor, k: Tensor, hw: tuple[int, int], rope: bool, reweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`ravlt.ops.rala.linear_attention_terms`."""
    q, k = elu1(at_least_float32(q)), elu1(at_least_float32(k))
    if reweight:
        g = q.mean(-2, keepdim=True) * q.shape[-1] ** -0.5
        k = k * (k @ g.transpose(-2, -1)).softmax(-2)
    else:
        k = k / k.shape[-2]  # means, so that no size of image overflows
    # The denominator sees queries and keys before the rotation.
    denominator = denominators(q, k.sum(-2, keepdim=True))
    if rope:
        tables = rotary_tables(q, hw)
        q, k = rotate(q, hw, tables), rotate(k, hw, tables)
    return q, k, denominator


def denominators(q: Tensor, k_sum: Tensor) -> Tensor:
    """Compute <phi(q_i), m> + eps of shape (B, heads, N, 1)."""
    return q @ k_sum.transpose(-2, -1) + 1e-6
