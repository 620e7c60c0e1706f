"""RoIPool of "Fast R-CNN" (https://arxiv.org/abs/1504.08083)."""

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from ravlt_mmops.precision import at_least_float32
from ravlt_mmops.sampling import find_edges


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Take the largest pixel of every bin.

    torchvision rounds a RoI to pixels before it splits it into bins, mmcv does not. So
    each of mmcv's bins is given to torchvision as a RoI of its own.

    Args:
        input: Feature maps, ``(batch, channels, height, width)``.
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        output: Buffer, ``(rois, channels, pooled_height, pooled_width)``; 0 for bins
            without a pixel.
        argmax: Buffer for the pixels' indices in their planes, int32, -1 for bins
            without a pixel.
        pooled_height: The number of bins along y.
        pooled_width: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
    """
    input = at_least_float32(input)
    bins = _split(rois.to(input.dtype), pooled_height, pooled_width, spatial_scale)
    with torch.autocast(input.device.type, enabled=False):  # it casts the indices
        found = torch.ops.torchvision.roi_pool(input, bins.flatten(0, 2), 1.0, 1, 1)
    for buffer, values in zip((output, argmax), found, strict=True):
        buffer.copy_(values.view(*bins.shape[:3], input.shape[1]).movedim(-1, 1))


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Compute the gradient of :func:`roi_pool_forward`.

    Args:
        grad_output: ``(rois, channels, pooled_height, pooled_width)``.
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        argmax: As the forward function filled it.
        grad_input: Buffer, ``(batch, channels, height, width)``.
        pooled_height: The number of bins along y.
        pooled_width: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
    """
    grad = at_least_float32(grad_output)
    backward = torch.ops.torchvision._roi_pool_backward
    size = (pooled_height, pooled_width, *grad_input.shape)
    grad_input.copy_(backward(grad, rois.to(grad.dtype), argmax, spatial_scale, *size))


def _split(rois: Tensor, rows: int, columns: int, spatial_scale: float) -> Tensor:
    """Return the first and last pixels of all bins, ``(rois, rows, columns, 5)``."""
    rois = torch.cat((rois[:, :3], rois[:, 3:] + 1), dim=1)  # the pixels' far edges
    image, y, x, height, width = find_edges(rois, rows, columns, spatial_scale)
    left, right = x[:, :, :-1].floor(), x[:, :, 1:].ceil() - 1
    top, bottom = y[:, :-1].floor(), y[:, 1:].ceil() - 1
    image = image.to(rois.dtype)
    bins = torch.stack(torch.broadcast_tensors(image, left, top, right, bottom), dim=-1)
    # torchvision makes an empty bin one pixel large. Beyond the map it stays empty.
    empty = (height <= 0) | (width <= 0) | (right < left) | (bottom < top)
    beyond = bins.new_full((), 2**24)
    return torch.cat(
        (bins[..., :1], bins[..., 1:].where(~empty[..., None], beyond)), -1
    )
