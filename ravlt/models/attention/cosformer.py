"""cosFormer (Qin et al., ICLR 2022, arXiv 2202.08791), in two dimensions."""

import math

import torch
from torch import Tensor

from ravlt.errors import RAVLTError

from .features import FeatureMapCore

LAYOUTS = ("product", "raster")


class CosFormerCore(FeatureMapCore):
    """ReLU attention, reweighted by a cosine of the distance between tokens.

    A pair of tokens dr rows and dc columns apart is reweighted by
    cos(pi/2 dr/H) cos(pi/2 dc/W). On a single row this is the paper's form. The
    reweighting factorizes into 4 d features of each token. ``layout='raster'`` applies
    the paper's form, cos(pi/2 dn/N), to tokens in reading order; neighbours in a column
    then count as distant.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        layout: 'product' or 'raster'.

    Raises:
        RAVLTError: If the layout is unknown.
    """

    def __init__(self, dim: int, num_heads: int, layout: str = "product") -> None:
        super().__init__(dim, num_heads)
        if layout not in LAYOUTS:
            raise RAVLTError(f"layout='{layout}' is unknown; use one of {LAYOUTS}.")
        self.layout = layout

    def features(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        height, width = hw
        if self.layout == "raster":
            waves = quarter_waves(height * width, q)
        else:
            rows, cols = quarter_waves(height, q), quarter_waves(width, q)
            # (H, 1, 2, 1) x (1, W, 1, 2): all products of a row wave and a column wave.
            waves = rows[:, None, :, None] * cols[None, :, None, :]
            waves = waves.reshape(height * width, 4)
        return modulate(q.relu(), waves), modulate(k.relu(), waves)

    def denominator(self, mean: Tensor) -> Tensor:
        return mean.clamp(min=1e-6)


def quarter_waves(length: int, like: Tensor) -> Tensor:
    """Compute the cosine and sine of pi/2 i/length for i = 0 .. length - 1.

    Args:
        length: Number of positions along an axis.
        like: Tensor whose device and dtype the result has.

    Returns:
        A tensor of shape (length, 2).
    """
    steps = torch.arange(length, device=like.device, dtype=like.dtype)
    angles = steps * (math.pi / 2 / length)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def modulate(x: Tensor, waves: Tensor) -> Tensor:
    """Multiply the features of each token by its waves.

    Args:
        x: Features of shape (B, heads, N, d).
        waves: Waves of shape (N, m).

    Returns:
        A tensor of shape (B, heads, N, m d).
    """
    return (waves[:, :, None] * x[..., None, :]).flatten(-2)
