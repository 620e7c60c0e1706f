"""Attention maps from masks relative to each pixel.

Source: Zhao et al., "PSANet: Point-wise Spatial Attention Network for Scene Parsing",
ECCV 2018.
"""

import torch
from torch import Tensor


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the masks of all pixels into maps at absolute positions.

    Args:
        input: Mask around every pixel, shape (N, h_mask * w_mask, H, W).
        output: Shape (N, H * W, H, W). Type 0 (collect) has the mask of a pixel along
            dimension 1, type 1 (distribute) along the last two.
        psa_type: 0 or 1.
        num_: Batch size.
        h_feature, w_feature: H and W.
        h_mask, w_mask: Size of the masks.
        half_h_mask, half_w_mask: Mask index of the pixel itself.
    """
    point, inside = _mask_points(
        input, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask
    )
    masks = input.flatten(2)
    maps = masks.gather(1, point.expand(num_, -1, -1)).where(inside, 0)
    _by_mask(output, psa_type).copy_(maps)


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of the masks.

    Args:
        grad_output: Gradient of the maps, shape (N, H * W, H, W).
        grad_input: Shape (N, h_mask * w_mask, H, W).
        psa_type, num_, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask:
            As in the forward pass.
    """
    point, inside = _mask_points(
        grad_output, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask
    )
    maps = _by_mask(grad_output, psa_type).where(inside, 0)
    masks = maps.new_zeros(num_, h_mask * w_mask, h_feature * w_feature)
    masks.scatter_add_(1, point.expand(num_, -1, -1), maps)
    grad_input.copy_(masks.view_as(grad_input))


def _by_mask(maps: Tensor, psa_type: int) -> Tensor:
    """Return maps with the mask along dimension 1, shape (N, H * W, H * W)."""
    maps = maps.flatten(2)
    return maps if psa_type == 0 else maps.transpose(1, 2)


def _mask_points(
    like: Tensor,
    height: int,
    width: int,
    h_mask: int,
    w_mask: int,
    h_half: int,
    w_half: int,
) -> tuple[Tensor, Tensor]:
    """Return the mask index that every pair of pixels reads.

    Args:
        like: A tensor on the device.
        height, width: Size of the features.
        h_mask, w_mask: Size of the masks.
        h_half, w_half: Mask index of the pixel itself.

    Returns:
        Indices and whether the mask reaches that far, shapes (H * W, H * W) over other
        pixels and pixels with a mask. Indices outside are 0.
    """
    rows = torch.arange(height, device=like.device)
    columns = torch.arange(width, device=like.device)
    y = (rows[:, None] - rows + h_half).view(height, 1, height, 1)
    x = (columns[:, None] - columns + w_half).view(1, width, 1, width)
    inside = (y >= 0) & (y < h_mask) & (x >= 0) & (x < w_mask)
    point = (y * w_mask + x).where(inside, 0)
    pixels = height * width
    return point.view(pixels, pixels), inside.view(pixels, pixels)
