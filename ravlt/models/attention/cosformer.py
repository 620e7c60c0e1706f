"""cosFormer (Qin et al., ICLR 2022, arXiv 2202.08791), in two dimensions."""

import math

import torch
from torch import Tensor

from ravlt.errors import RAVLTError

from .features import FeatureMapCore

LAYOUTS = ("product", "raster")


class CosFormerCore(FeatureMapCore):
    """ReLU attention that a cosine of the distance reweights.

    The weight of two tokens is cos(pi/2 dr/H) cos(pi/2 dc/W), with their distance dr
    in rows and dc in columns: for a row of tokens the paper's own. It splits into
    features of each token, 4 d in all. ``layout='raster'`` is the paper's form on
    tokens in reading order, cos(pi/2 dn/N), which takes neighbours in a column for far
    apart.

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
            # (H, 1, 2, 1) x (1, W, 1, 2): every pair of a row's and a column's wave.
            waves = rows[:, None, :, None] * cols[None, :, None, :]
            waves = waves.reshape(height * width, 4)
        return modulate(q.relu(), waves), modulate(k.relu(), waves)

    def denominator(self, mean: Tensor) -> Tensor:
        return mean.clamp(min=1e-6)


def quarter_waves(length: int, like: Tensor) -> Tensor:
    """Cosine and sine of pi/2 i/length for i = 0 .. length - 1.

    Args:
        length: Positions along an axis.
        like: Gives device and dtype.

    Returns:
        A tensor of shape (length, 2).
    """
    steps = torch.arange(length, device=like.device, dtype=like.dtype)
    angles = steps * (math.pi / 2 / length)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def modulate(x: Tensor, waves: Tensor) -> Tensor:
    """Multiplies features by waves of their token.

    Args:
        x: Features of shape (B, heads, N, d).
        waves: Waves of shape (N, m).

    Returns:
        A tensor of shape (B, heads, N, m d).
    """
    return (waves[:, :, None] * x[..., None, :]).flatten(-2)
