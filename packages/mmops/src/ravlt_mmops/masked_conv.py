"""Columns of a convolution at selected pixels, of "Region Proposal by Guided
Anchoring" (Wang et al., CVPR 2019)."""

import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Copy the windows around the selected pixels into columns.

    Args:
        im: Feature maps, ``(1, channels, height, width)``.
        mask_h_idx: The rows of the selected pixels, ``(pixels,)``.
        mask_w_idx: The columns of the selected pixels, ``(pixels,)``.
        col: Buffer, ``(channels * kernel_h * kernel_w, pixels)``.
        kernel_h: The kernel's height in pixels.
        kernel_w: The kernel's width in pixels.
        pad_h: The padding along y in pixels.
        pad_w: The padding along x in pixels.
    """
    # One window per pixel, whatever the padding: too much of it is cut off.
    padding = (pad_w, kernel_w - 1 - pad_w, pad_h, kernel_h - 1 - pad_h)
    windows = F.pad(im[0], padding).unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    selected = windows[:, mask_h_idx, mask_w_idx]
    col.view(-1, kernel_h, kernel_w, col.size(1)).copy_(selected.permute(0, 2, 3, 1))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Copy columns to the selected pixels and leave all others as they are.

    Args:
        col: Values, ``(channels, pixels)``.
        mask_h_idx: The rows of the selected pixels, ``(pixels,)``.
        mask_w_idx: The columns of the selected pixels, ``(pixels,)``.
        im: Buffer, ``(1, channels, height, width)``.
        height: The buffer's height.
        width: The buffer's width.
        channels: The number of channels.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im.dtype)
