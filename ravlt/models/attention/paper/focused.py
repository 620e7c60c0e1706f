"""FLatten's layer (Han et al., ICCV 2023, arXiv 2308.00442)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...depthwise import DepthwiseConv, to_tokens
from ...precision import at_least_float32, autocast_off
from ..cores.focused import FocusedCore
from .plain import PlainAttention

_GRID = 14  # tokens along a side, of the table of positions


class FocusedAttention(PlainAttention):
    """proj(core(q, k + P, v) + DWC(v)).

    P are learned positions, on a grid of 14 x 14 that is resized (bicubic) to that of
    the tokens: the paper's tables have the size of a classifier's grids, and fit no
    other. DWC is a depthwise 5 x 5 convolution that all heads share.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: The mechanism.
    """

    def __init__(self, dim: int, num_heads: int, core: FocusedCore) -> None:
        super().__init__(dim, num_heads, core)
        self.positions = nn.Parameter(torch.zeros(1, dim, _GRID, _GRID))
        self.dwc = DepthwiseConv(dim // num_heads, 5)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = k + self._resized((v.shape[1], v.shape[2])).to(k.dtype)
        return super().mix(q, k, v) + self._local(v)

    def _resized(self, hw: tuple[int, int]) -> Tensor:
        with autocast_off(self.positions):
            table = at_least_float32(self.positions)
            return to_tokens(F.interpolate(table, hw, mode="bicubic"))

    def _local(self, v: Tensor) -> Tensor:
        """The convolution of each head's features."""
        heads = v.unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)
        local = self.dwc(heads.flatten(0, 1)).unflatten(0, heads.shape[:2])
        return local.permute(0, 2, 3, 1, 4).flatten(-2)
