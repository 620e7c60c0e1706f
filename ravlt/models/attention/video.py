"""Feature fixation on clips (Linear Video Transformer, arXiv 2210.08164)."""

from torch import Tensor, nn

from ravlt.errors import RAVLTError

from ..layers import PointwiseConv
from .cores.fixation import FixationCore
from .heads import join_heads, split_heads
from .shift import spatial_shift, temporal_shift

AXES = ("time", "space")


class ClipAttention(nn.Module):
    """proj(core(q, k, v)) with q, k, v = qkv(x), over one axis of a clip.

    Over 'time' each place attends to itself in all T frames; over 'space' each frame
    to its H x W tokens. A video transformer has one after the other. Keys and values
    first take channels from neighbours along the other axis, which the attention does
    not see, as released: over time from places around, over space from the frames
    before and after.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        axis: 'time' or 'space'.
        shift: Whether channels move between neighbours.

    Raises:
        RAVLTError: If the axis is unknown.
    """

    def __init__(self, dim: int, num_heads: int, axis: str, shift: bool = True) -> None:
        super().__init__()
        if axis not in AXES:
            raise RAVLTError(f"axis='{axis}' is unknown; use one of {AXES}.")
        self.axis = axis
        self.shift = shift
        self.num_heads = num_heads
        self.qkv = PointwiseConv(dim, 3 * dim)
        self.core = FixationCore(dim, num_heads)
        self.proj = PointwiseConv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens of clips.

        Args:
            x: Tokens of shape (B, T, H, W, C), normalised.

        Returns:
            A tensor of the same shape.
        """
        frames, hw = x.shape[1], (x.shape[2], x.shape[3])
        parts = self.qkv(x.flatten(0, 1)).chunk(3, dim=-1)
        q, k, v = (split_heads(part, self.num_heads) for part in parts)
        if self.axis == "time":
            if self.shift:
                k, v = spatial_shift(k, hw), spatial_shift(v, hw)
            q, k, v = (_exchange(part, frames) for part in (q, k, v))
            y = _exchange(self.core(q, k, v, (1, frames)), hw[0] * hw[1])
        else:
            if self.shift:
                k, v = (_shifted_in_time(part, frames) for part in (k, v))
            y = self.core(q, k, v, hw)
        return self.proj(join_heads(y, hw)).unflatten(0, (-1, frames))


def _exchange(x: Tensor, count: int) -> Tensor:
    """(B count, heads, N, d) -> (B N, heads, count, d): frames by places, or back."""
    return x.unflatten(0, (-1, count)).transpose(1, 3).flatten(0, 1)


def _shifted_in_time(x: Tensor, frames: int) -> Tensor:
    return _exchange(temporal_shift(_exchange(x, frames)), x.shape[2])
