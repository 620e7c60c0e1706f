"""Channels-last tokens to channels-first feature maps."""

import torch
from torch import Tensor

from .dispatch import is_eager_on_cpu


def channels_first(x: Tensor) -> Tensor:
    """Transpose (B, H, W, C) to contiguous (B, C, H, W).

    A permuted view would not do: mmcv's RoIAlign reads any memory format as
    contiguous without a warning, and convolutions pass the format of their input on.
    """
    maps = x.permute(0, 3, 1, 2)
    if torch.jit.is_scripting():
        return maps.contiguous()
    if is_eager_on_cpu(x) and len(x):
        return _channels_first_cpu(x)
    return maps.contiguous()


def _channels_first_cpu(x: Tensor) -> Tensor:
    """Transpose image by image.

    PyTorch transposes matrices block by block, but permuted images element by element.
    """
    maps = [image.flatten(0, 1).t().contiguous().unsqueeze(0) for image in x]
    maps = torch.cat(maps) if len(maps) > 1 else maps[0]
    return maps.unflatten(2, x.shape[1:3])
