"""Bilinear interpolation and the sampling grids of the RoI operators.

A feature map is read as rows of pixels, ``(planes * height * width, channels)``: one
index then fetches all channels of a pixel.
"""

from collections.abc import Iterator
from itertools import repeat
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor


class Edges(NamedTuple):
    """The edges between all bins, in pixels of the feature map.

    Attributes:
        image: The RoIs' indices in the batch, ``(rois, 1, 1)``, int64.
        y: The bins' edges along y, ``(rois, rows + 1, 1)``.
        x: The bins' edges along x, ``(rois, 1, columns + 1)``.
        height: The bins' heights, ``(rois, 1, 1)``.
        width: The bins' widths, ``(rois, 1, 1)``.
    """

    image: Tensor
    y: Tensor
    x: Tensor
    height: Tensor
    width: Tensor


class Bins(NamedTuple):
    """The bins of all RoIs, in pixels of the feature map.

    Attributes:
        image: The RoIs' indices in the batch, ``(rois, 1, 1)``, int64.
        top: The bins' upper edges, ``(rois, rows, columns)``.
        left: The bins' left edges, ``(rois, rows, columns)``.
        height: The bins' heights, ``(rois, 1, 1)``.
        width: The bins' widths, ``(rois, 1, 1)``.
    """

    image: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def find_edges(
    rois: Tensor,
    rows: int,
    columns: int,
    spatial_scale: float,
    shift: float = 0,
    smallest: float = -inf,
) -> Edges:
    """Split RoIs into bins.

    Args:
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        rows: The number of bins along y.
        columns: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
        shift: What is subtracted from all coordinates, in pixels of the feature map.
        smallest: The least width and height of a RoI in pixels of the feature map.
    """
    image, x1, y1, x2, y2 = rois[:, :, None, None].unbind(1)
    x1, y1, x2, y2 = (edge * spatial_scale - shift for edge in (x1, y1, x2, y2))
    height = (y2 - y1).clamp(min=smallest) / rows
    width = (x2 - x1).clamp(min=smallest) / columns
    row = torch.arange(rows + 1, device=rois.device)[:, None]
    column = torch.arange(columns + 1, device=rois.device)
    return Edges(image.long(), y1 + row * height, x1 + column * width, height, width)


def split_rois(
    rois: Tensor, rows: int, columns: int, spatial_scale: float, aligned: bool
) -> Bins:
    """Split RoIs into bins as RoIAlign does.

    Args:
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        rows: The number of bins along y.
        columns: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
        aligned: Whether pixel centres lie at half pixels of the image. Otherwise
            every RoI is at least one pixel of the feature map wide and high.
    """
    shift, smallest = (0.5, -inf) if aligned else (0, 1)
    image, y, x, height, width = find_edges(
        rois, rows, columns, spatial_scale, shift, smallest
    )
    top, left = torch.broadcast_tensors(y[:, :-1], x[:, :, :-1])
    return Bins(image, top, left, height, width)


def count_samples(bins: Bins, sampling_ratio: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of samples of a bin along y and x, ``(rois, 1, 1)`` each.

    Args:
        bins: The bins of all RoIs.
        sampling_ratio: The number along each axis; 0 takes one sample a pixel.
    """
    if sampling_ratio > 0:
        ratio = torch.full_like(bins.height, sampling_ratio)
        return ratio, ratio
    return bins.height.ceil().clamp(min=0), bins.width.ceil().clamp(min=0)


def iterate_samples(
    bins: Bins, sampling_ratio: int
) -> Iterator[tuple[Tensor | slice, Tensor, Tensor]]:
    """Yield one sample of every bin after the other, row by row.

    Args:
        bins: The bins of all RoIs.
        sampling_ratio: The number of samples along each axis; 0 takes one a pixel.

    Yields:
        Which RoIs have this sample, an index of their dimension, and the samples' y
        and x, ``(these rois, rows, columns)`` each.
    """
    if bins.top.numel() == 0:
        return
    rows, columns = count_samples(bins, sampling_ratio)
    if sampling_ratio > 0:
        turns = repeat(slice(None), sampling_ratio**2)
    else:
        turns = _list_turns((rows * columns).flatten())
    for number, rois in enumerate(turns):
        _, top, left, height, width = (part[rois] for part in bins)
        row, column = number // columns[rois], number % columns[rois]
        y = top + (row + 0.5) * height / rows[rois]
        x = left + (column + 0.5) * width / columns[rois]
        yield rois, y, x


def _list_turns(counts: Tensor) -> Iterator[Tensor]:
    """Yield the indices of the RoIs that have a first sample, a second, and so on.

    Args:
        counts: The numbers of samples, ``(rois,)``; NaN and infinity mean none.
    """
    counts = counts.nan_to_num(0, posinf=0).long()
    counts, order = counts.sort(descending=True)
    # The boxes decide how long the loop is, so a GPU is asked once.
    counts = counts.tolist()
    number = len(counts)
    for turn in range(counts[0]):
        while counts[number - 1] <= turn:
            number -= 1
        yield order[:number]


def find_neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the two pixels around a position, the border's beyond the border.

    Args:
        position: Positions along one axis in pixels.
        size: The number of pixels along the axis.
    """
    low = position.clamp(0, size - 1).nan_to_num(0).long()
    return low, (low + 1).clamp(max=size - 1)


def is_inside(y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Return which samples count: those at most one pixel beyond the map."""
    return (y >= -1) & (y <= height) & (x >= -1) & (x <= width)


def iterate_corners(
    y: Tensor, x: Tensor, height: int, width: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the four pixels around each sample, and their weights.

    Args:
        y: The samples' rows in pixels, any shape.
        x: The samples' columns in pixels, the same shape.
        height: The feature map's height.
        width: The feature map's width.

    Yields:
        The pixel's index in its plane and its weight, 0 for samples that lie outside.
    """
    inside = is_inside(y, x, height, width)
    (top, bottom), (left, right) = find_neighbours(y, height), find_neighbours(x, width)
    down = y.clamp(0, height - 1) - top
    along = x.clamp(0, width - 1) - left
    for row, weight_y in ((top, 1 - down), (bottom, down)):
        for column, weight_x in ((left, 1 - along), (right, along)):
            weight = torch.where(inside, weight_y * weight_x, 0)
            yield row * width + column, weight


def to_pixels(maps: Tensor) -> Tensor:
    """Return feature maps ``(..., channels, height, width)`` as rows of pixels."""
    return maps.movedim(-3, -1).reshape(-1, maps.shape[-3])


def interpolate(
    pixels: Tensor, plane: Tensor, y: Tensor, x: Tensor, height: int, width: int
) -> Tensor:
    """Interpolate bilinearly.

    Args:
        pixels: Rows of pixels, ``(planes * height * width, channels)``.
        plane: The samples' planes, int64, broadcast to ``y``.
        y: The samples' rows in pixels, any shape.
        x: The samples' columns in pixels, the same shape.
        height: The feature map's height.
        width: The feature map's width.

    Returns:
        The values, ``(*y.shape, channels)``.
    """
    values = pixels.new_zeros(*y.shape, pixels.shape[1])
    for index, weight in iterate_corners(y, x, height, width):
        values.addcmul_(pixels[plane * height * width + index], weight[..., None])
    return values


def interpolate_backward(
    grad: Tensor, plane: Tensor, y: Tensor, x: Tensor, shape: torch.Size
) -> Tensor:
    """Compute the gradient of single samples with respect to the feature maps.

    Args:
        grad: The gradients of the samples.
        plane: The samples' planes, int64, broadcast to ``grad``.
        y: The samples' rows in pixels, broadcast to ``grad``.
        x: The samples' columns in pixels, broadcast to ``grad``.
        shape: The feature maps' shape, ``(..., height, width)``.
    """
    height, width = shape[-2:]
    maps = grad.new_zeros(shape.numel())
    for index, weight in iterate_corners(y, x, height, width):
        index = (plane * height * width + index).expand_as(grad)
        maps.index_add_(0, index.flatten(), (weight * grad).flatten())
    return maps.view(shape)
