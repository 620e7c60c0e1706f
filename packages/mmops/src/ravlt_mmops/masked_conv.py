"""Columns of a convolution at selected pixels.

Source: Wang et al., "Region Proposal by Guided Anchoring", CVPR 2019.
"""

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
    """Write the windows around the selected pixels as columns.

    Args:
        im: Features, shape (1, C, H, W).
        mask_h_idx: Row of every selected pixel, shape (M,).
        mask_w_idx: Column of every selected pixel, shape (M,).
        col: Result, shape (C * kernel_h * kernel_w, M).
        kernel_h, kernel_w, pad_h, pad_w: Kernel size and padding in pixels.
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
    """Write columns to the selected pixels and leave all others as they are.

    Args:
        col: Values, shape (channels, M).
        mask_h_idx: Row of every selected pixel, shape (M,).
        mask_w_idx: Column of every selected pixel, shape (M,).
        im: Result, shape (1, channels, height, width).
        height, width, channels: Shape of the result.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im.dtype)
