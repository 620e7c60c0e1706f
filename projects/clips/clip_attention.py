"""Feature fixation on clips (Linear Video Transformer, arXiv 2210.08164)."""

from torch import Tensor, nn

from ravlt.errors import RAVLTError
from ravlt.models.attention import join_heads, split_heads
from ravlt.models.attention.fixation import FixationCore
from ravlt.models.attention.shift import shift_channels, spatial_shift
from ravlt.models.layers import PointwiseConv

AXES = ("time", "space")
# Offsets of the frames that the groups of channels come from, in the released order.
FRAMES = ((1,), (-1,))


class ClipAttention(nn.Module):
    """Feature fixation over one axis of a clip: proj(core(q, k, v)), q, k, v = qkv(x).

    With axis 'time' each position attends to itself in all T frames. With axis 'space'
    the H x W tokens of each frame attend to each other. A video transformer uses one
    after the other. As in the released code, keys and values first take channels from
    neighbours along the axis that is not attended: with 'time' from the eight
    neighbours in the frame, with 'space' from the next and the previous frame.

    Args:
        dim: Number of channels, C.
        num_heads: Number of heads.
        axis: 'time' or 'space'.
        shift: True to take channels from neighbours.

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
        """Mix the tokens of clips.

        Args:
            x: Normalised tokens of shape (B, T, H, W, C).

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


def temporal_shift(x: Tensor) -> Tensor:
    """Take one eighth of the channels from the next frame, and one from the previous.

    Args:
        x: Keys or values of one position in T frames, of shape (B, heads, T, d).

    Returns:
        A tensor of the same shape, with zeros from beyond the first and last frame.
    """
    return shift_channels(x, x.shape[2:3], FRAMES, share=8)


def _exchange(x: Tensor, count: int) -> Tensor:
    """Exchange frames and positions: (B n, heads, N, d) -> (B N, heads, n, d).

    Args:
        x: Tensor of shape (B n, heads, N, d).
        count: Number of frames, or of positions, in the batch axis, n.
    """
    return x.unflatten(0, (-1, count)).transpose(1, 3).flatten(0, 1)


def _shifted_in_time(x: Tensor, frames: int) -> Tensor:
    """Apply :func:`temporal_shift` to frames in the batch axis, (B T, heads, N, d)."""
    return _exchange(temporal_shift(_exchange(x, frames)), x.shape[2])
