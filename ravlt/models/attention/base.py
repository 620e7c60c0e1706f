"""The interface of every attention mechanism, and the plain layer around one."""

from abc import abstractmethod

from torch import Tensor, nn

from ..layers import PointwiseConv


class AttentionCore(nn.Module):
    """Mixes the tokens of every head: (q, k, v, hw) -> output.

    A mechanism that reads more of its input than queries, keys and values sets
    ``needs_input``. Its methods then take one more argument after ``hw``: ``x`` of
    shape (B, H, W, C), the normalized tokens that q, k and v were made from.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.

    Attributes:
        row_stochastic: Whether the rows of :meth:`dense` sum to 1.
        nonneg: Whether :meth:`dense` has no negative entry.
        linear_in_N: Whether time and memory grow linearly with the tokens.
        needs_input: Whether the core also reads the layer's input ``x``.
    """

    __constants__ = ("needs_input",)  # TorchScript reads no other class attributes

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
        """Mix the tokens.

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
        """Compute the explicit mixing matrix, for tests and analysis on small grids.

        Args:
            q: As in :meth:`forward`.
            k: As in :meth:`forward`.
            v: As in :meth:`forward`.
            hw: As in :meth:`forward`.

        Returns:
            A of shape (B, heads, N, N) with ``A @ v == core(q, k, v, hw)``. A core that
            ends with a gain of each channel has ``core.gain`` of shape (d,) to multiply
            by; one that moves values first has ``core.values(v, hw)`` in place of v.
        """

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


class PlainAttention(nn.Module):
    """proj(core(q, k, v)) with q, k, v = qkv(x): no local term, no gate.

    This is the layer of softmax, linear, cosFormer, TransNormer's two mechanisms,
    Feature Fixation and Hedgehog in their own papers; other layers extend it.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: The mechanism; ``core.dim`` is the width of queries, keys and values.
    """

    def __init__(self, dim: int, num_heads: int, core: AttentionCore) -> None:
        super().__init__()
        self.core = core
        self.num_heads = num_heads
        self.qkv = PointwiseConv(dim, 3 * core.dim)
        self.proj = PointwiseConv(core.dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of a grid.

        Args:
            x: Normalized tokens of shape (B, H, W, C).

        Returns:
            A tensor of the same shape.
        """
        return self.proj(self.mix(*self.qkv(x).chunk(3, dim=-1)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Run the core on grids of shape (B, H, W, core.dim)."""
        hw = (v.shape[1], v.shape[2])
        heads = (split_heads(t, self.num_heads) for t in (q, k, v))
        return join_heads(self.core(*heads, hw), hw)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """View (B, H, W, C) as (B, heads, H * W, d).

    Head h holds the channels h d to (h + 1) d - 1, d = C / heads.
    """
    return x.flatten(1, 2).unflatten(-1, [num_heads, -1]).transpose(1, 2)


def join_heads(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Invert :func:`split_heads`: (B, heads, H * W, d) -> (B, H, W, heads * d)."""
    return x.transpose(1, 2).flatten(-2).unflatten(1, [hw[0], hw[1]])
