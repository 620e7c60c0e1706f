"""Between grids of tokens and heads; head h holds the channels h d to (h + 1) d - 1."""

from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, H, W, C) -> (B, heads, H * W, C / heads), a view."""
    return x.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Undoes :func:`split_heads`: (B, heads, H * W, d) -> (B, H, W, heads * d)."""
    return x.transpose(1, 2).flatten(-2).unflatten(1, hw)
