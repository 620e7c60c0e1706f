"""What every attention core has in common: its interface and its numeric rules."""

from abc import abstractmethod

import torch
from torch import Tensor, nn


class AttentionCore(nn.Module):
    """Mixes the tokens of every head: (q, k, v, hw) -> output.

    A mechanism that reads more of its input than queries, keys and values says so by
    ``needs_input``. All of its methods then take one argument more, after ``hw``:
    ``x`` of shape (B, H, W, C), the normalised tokens that q, k and v were made from.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.

    Attributes:
        row_stochastic: Whether the rows of :meth:`dense` sum to 1.
        nonneg: Whether :meth:`dense` has no negative entry.
        linear_in_N: Whether time and memory grow linearly with the tokens.
        needs_input: Whether the core also reads the layer's input.
    """

    row_stochastic: bool
    nonneg: bool
    linear_in_N: bool
    needs_input = False

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """Mixes the tokens.

        Args:
            q: Queries of shape (B, heads, N, d), before any feature map.
            k: Keys of shape (B, heads, N, d).
            v: Values of shape (B, heads, N, d).
            hw: Height and width of the grid; N = H * W, row by row.

        Returns:
            A tensor of shape (B, heads, N, d) in the dtype of ``v``.
        """

    @abstractmethod
    def dense(self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """Gives the explicit mixing matrix, for tests and analysis on small grids.

        Args:
            q: As in :meth:`forward`.
            k: As in :meth:`forward`.
            v: As in :meth:`forward`.
            hw: As in :meth:`forward`.

        Returns:
            A of shape (B, heads, N, N) with ``A @ v == core(q, k, v, hw)``; times
            ``core.gain``, (d,), for a core that ends with a gain of each channel; with
            ``core.values(v, hw)`` in place of v, for one that moves values before.
        """

    def mix_(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        hw: tuple[int, int],
        side: int,
        *x: Tensor,
    ) -> Tensor:
        """Like :meth:`forward` for inference, in tiles: may overwrite ``q`` and ``k``.

        Args:
            q: As in :meth:`forward`, but float32 or wider.
            k: As in :meth:`forward`, but float32 or wider.
            v: As in :meth:`forward`.
            hw: As in :meth:`forward`.
            side: Tokens along a side of a tile.
            *x: The layer's input, if the core needs it; must not be overwritten.

        Returns:
            As :meth:`forward`, in any precision; possibly the memory of ``q``.
        """
        return self(q, k, v, hw, *x)

    def switch_to_deploy(self) -> None:
        """Folds what the core can fold for inference, in place: most have nothing."""

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


class _ELU1(torch.autograd.Function):
    """Remembers its output only: the derivative of elu(x) + 1 is min(output, 1)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = elu1_(x.clone())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * y.clamp(max=1)


def elu1(x: Tensor) -> Tensor:
    """The feature map elu(x) + 1: x + 1 above zero, exp(x) below.

    ``F.elu(x) + 1`` would round to 0 below -17 in float32 and can make a denominator
    vanish; this form stays positive down to -103, and its gradient at 0 is 1.
    """
    return _ELU1.apply(x)


def elu1_(x: Tensor) -> Tensor:
    """:func:`elu1` in place, without gradient."""
    below = x.clamp(max=0).exp_()
    return x.clamp_(min=0).add_(below)
