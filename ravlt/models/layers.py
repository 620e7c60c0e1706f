"""Layers on channels-last tokens (B, H, W, C).

In this layout a 1 x 1 convolution is a matrix product on contiguous memory and
LayerNorm needs no permutation. Parameters keep the shapes and names of the
convolutions in the released checkpoints.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ravlt.errors import RAVLTError

_NORMS = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}


def build_norm(norm_cfg: Mapping, channels: int) -> nn.Module:
    """Builds a batch norm from a config of the hosts' form.

    Args:
        norm_cfg: ``type`` ('BN' or 'SyncBN'), optionally ``requires_grad`` and the
            arguments of the class.
        channels: Number of channels.

    Raises:
        RAVLTError: If the type is another one.
    """
    cfg = dict(norm_cfg)
    name = cfg.pop("type", None)
    if name not in _NORMS:
        raise RAVLTError(
            f"norm_cfg has type={name!r}, but RAVLT's stem and downsampling hold batch "
            f"norms; use one of {sorted(_NORMS)}."
        )
    requires_grad = cfg.pop("requires_grad", True)
    return _NORMS[name](channels, **cfg).requires_grad_(requires_grad)


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution of (B, H, W, C) tokens, as a matrix product."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class DepthwiseConv(nn.Conv2d):
    """A depthwise k x k convolution of (B, H, W, C) tokens, zero-padded."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(super().forward(to_image(x)))


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of (B, H, W, C) tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Stem(nn.Module):
    """Four 3 x 3 convolutions: pixels (B, 3, H, W) -> tokens at a quarter of the size.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the tokens, C.
        norm_cfg: Config of the batch norms.
    """

    def __init__(self, in_channels: int, dim: int, norm_cfg: Mapping) -> None:
        super().__init__()
        half = dim // 2
        plan = (
            (in_channels, half, 2),
            (half, half, 1),
            (half, half, 1),
            (half, dim, 2),
        )
        layers = []
        for i, (c_in, c_out, stride) in enumerate(plan):
            if i:
                layers.append(nn.GELU())
            layers.append(nn.Conv2d(c_in, c_out, 3, stride, padding=1))
            layers.append(build_norm(norm_cfg, c_out))
        self.proj = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""
        return to_tokens(self.proj(x.contiguous(memory_format=torch.channels_last)))


class Downsample(nn.Module):
    """A strided 3 x 3 convolution and a batch norm: halves the grid, rounding up."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: Mapping) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(in_channels, out_channels, 3, 2, padding=1)
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.norm(self.reduction(to_image(x))))


def to_image(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W) without moving memory."""
    return x.permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C) without moving memory."""
    return x.permute(0, 2, 3, 1)
