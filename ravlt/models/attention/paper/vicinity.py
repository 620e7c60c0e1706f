"""Vicinity attention's layer (Sun et al., TPAMI 2023, arXiv 2206.10552)."""

from torch import Tensor, nn

from ...layers import PointwiseConv
from ..cores.vicinity import VicinityCore
from .plain import PlainAttention


class VicinityAttention(PlainAttention):
    """Attention on half of the channels, and a gate that gives back the features.

    Feature reduction: queries, keys and values have C / 2 channels. Feature preserving
    connection: the output, of C channels again, times 1 + s, with
    s = sigmoid(W_2 relu(W_1 mean(x))), one for each image and channel.

    Args:
        dim: Channels, C.
        num_heads: Number of heads, half as wide as usual.
        core: The mechanism, of C / 2 channels.
    """

    def __init__(self, dim: int, num_heads: int, core: VicinityCore) -> None:
        super().__init__(dim, num_heads, core)
        self.preserve = nn.Sequential(
            PointwiseConv(dim, dim, bias=False),
            nn.ReLU(),
            PointwiseConv(dim, dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.preserve(x.mean((1, 2), keepdim=True))
        return super().forward(x) * (1 + gate)
