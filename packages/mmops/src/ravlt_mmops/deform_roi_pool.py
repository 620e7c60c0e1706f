"""Deformable RoI pooling of "Deformable ConvNets v2"
(https://arxiv.org/abs/1811.11168)."""

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from ravlt_mmops.precision import at_least_float32
from ravlt_mmops.sampling import (
    Bins,
    count_samples,
    find_neighbours,
    is_inside,
    iterate_samples,
    split_rois,
    to_pixels,
)


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Average bilinear samples of every bin, each bin moved by its offset.

    A bin is given to torchvision's RoIAlign as a RoI of its own.

    Args:
        input: Feature maps, ``(batch, channels, height, width)``.
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        offset: The bins' offsets along x and y, in RoI widths and heights over
            ``gamma``, ``(rois, 2, pooled_height, pooled_width)``, or empty.
        output: Buffer, ``(rois, channels, pooled_height, pooled_width)``.
        pooled_height: The number of bins along y.
        pooled_width: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
        sampling_ratio: The number of samples of a bin along each axis; 0 takes one a
            pixel.
        gamma: The scale of the offsets.
    """
    input = at_least_float32(input)
    size = (pooled_height, pooled_width)
    bins = split_rois(rois.to(input.dtype), *size, spatial_scale, aligned=True)
    boxes = _to_boxes(_move(bins, offset, gamma), sampling_ratio)
    forward = torch.ops.torchvision.roi_align
    pooled = forward(input, boxes, 1.0, 1, 1, sampling_ratio, True)
    output.copy_(pooled.view(*bins.top.shape, input.shape[1]).movedim(-1, 1))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Compute the gradients of :func:`deform_roi_pool_forward`.

    Args:
        grad_output: ``(rois, channels, pooled_height, pooled_width)``.
        input: Feature maps, ``(batch, channels, height, width)``.
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        offset: ``(rois, 2, pooled_height, pooled_width)``, or empty.
        grad_input: Buffer, ``(batch, channels, height, width)``.
        grad_offset: Buffer of the shape of ``offset``.
        pooled_height: The number of bins along y.
        pooled_width: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
        sampling_ratio: The number of samples of a bin along each axis, or 0.
        gamma: The scale of the offsets.
    """
    grad, input = at_least_float32(grad_output), at_least_float32(input)
    grad = grad.movedim(1, -1).contiguous()
    size = (pooled_height, pooled_width)
    bins = split_rois(rois.to(grad.dtype), *size, spatial_scale, aligned=True)
    moved = _move(bins, offset, gamma)
    backward = torch.ops.torchvision._roi_align_backward
    boxes, shape = _to_boxes(moved, sampling_ratio), grad_input.shape
    flat = grad.view(-1, shape[1], 1, 1)
    grad_input.copy_(backward(flat, boxes, 1.0, 1, 1, *shape, sampling_ratio, True))
    if offset.numel():
        along_x, along_y = _differentiate(grad, input, moved, sampling_ratio)
        grad_offset[:, 0].copy_(gamma * pooled_width * bins.width * along_x)
        grad_offset[:, 1].copy_(gamma * pooled_height * bins.height * along_y)


def _move(bins: Bins, offset: Tensor, gamma: float) -> Bins:
    """Move every bin by its offset."""
    if not offset.numel():
        return bins
    rows, columns = offset.shape[2:]
    along_x, along_y = offset.to(bins.top.dtype).unbind(1)
    return bins._replace(
        top=bins.top + gamma * rows * bins.height * along_y,
        left=bins.left + gamma * columns * bins.width * along_x,
    )


def _to_boxes(bins: Bins, sampling_ratio: int) -> Tensor:
    """Return all bins as RoIs of an aligned RoIAlign at scale 1, ``(bins, 5)``."""
    image, top, left, height, width = bins
    if sampling_ratio <= 0:  # inverted RoIs have no samples
        height, width = height.clamp(min=0), width.clamp(min=0)
    # RoIAlign subtracts the edges. Rounded up, a bin of 4 pixels would get 5 samples.
    bottom = torch.nextafter(top + 0.5 + height, top)
    right = torch.nextafter(left + 0.5 + width, left)
    edges = image.to(top.dtype), left + 0.5, top + 0.5, right, bottom
    return torch.stack(torch.broadcast_tensors(*edges), dim=-1).flatten(0, 2)


def _differentiate(
    grad: Tensor, input: Tensor, bins: Bins, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Compute the gradients with respect to the bins' places.

    Within a pixel of the map's border this is mmcv's formula, which extrapolates there
    and is not the derivative.

    Args:
        grad: The gradient of the output, ``(rois, rows, columns, channels)``.
        input: Feature maps, ``(batch, channels, height, width)``.
        bins: The moved bins.
        sampling_ratio: The number of samples of a bin along each axis, or 0.

    Returns:
        The gradients along x and y in pixels, ``(rois, rows, columns)`` each.
    """
    height, width = input.shape[2:]
    pixels = to_pixels(input)
    along_x, along_y = torch.zeros_like(bins.top), torch.zeros_like(bins.top)
    for some, y, x in iterate_samples(bins, sampling_ratio):
        inside = is_inside(y, x, height, width)
        top, bottom = find_neighbours(y, height)
        left, right = find_neighbours(x, width)
        rows = (top, -1, bottom - y), (bottom, 1, y - top)
        columns = (left, -1, right - x), (right, 1, x - left)
        for row, sign_y, weight_y in rows:
            for column, sign_x, weight_x in columns:
                index = (bins.image[some] * height + row) * width + column
                value = (pixels[index] * grad[some]).sum(dim=-1)
                along_x[some] += torch.where(inside, sign_x * weight_y * value, 0)
                along_y[some] += torch.where(inside, sign_y * weight_x * value, 0)
    samples_y, samples_x = count_samples(bins, sampling_ratio)
    count = (samples_y * samples_x).clamp(min=1)
    return along_x / count, along_y / count
