"""Channels-last tokens to channels-first feature maps."""

import torch
from torch import Tensor

from .dispatch import is_eager_on_cpu


def channels_first(x: Tensor) -> Tensor:
    """Transpose (B, H, W, C) to contiguous (B, C, H, W).

    A permuted view would not do: mmcv's RoIAlign reads any memory format as
    contiguous without a warning, and convolutions pass the format of their input on.
    """
    if torch.jit.is_scripting():
        return x.permute(0, 3, 1, 2).contiguous()
    if not is_eager_on_cpu(x):
        return x.permute(0, 3, 1, 2).contiguous()
    # PyTorch transposes matrices block by block, but permuted images element by
    # element.
    maps = [image.flatten(0, 1).t().contiguous().unsqueeze(0) for image in x]
    maps = torch.cat(maps) if len(maps) > 1 else maps[0]
    return maps.unflatten(2, x.shape[1:3])
