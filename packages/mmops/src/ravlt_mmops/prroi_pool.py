"""Precise RoI pooling of "Acquisition of Localization Confidence for Accurate Object
Detection" (https://arxiv.org/abs/1807.11590).

The integral of a bilinear interpolation over a box is the difference of the
antiderivative at its four corners. The antiderivative at a point is a quadratic
B-spline, 3 x 3 taps, of the map's prefix sums. So the cost does not depend on the
boxes' sizes. Prefix sums are differences of large numbers, hence float64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from ravlt_mmops.sampling import Edges, find_edges

# The taps of a corner beyond the map read up to two pixels outside.
MARGIN = 2


def prroi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Average the bilinear interpolation over every bin exactly.

    Args:
        input: Feature maps, ``(batch, channels, height, width)``; zero outside.
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        output: Buffer, ``(rois, channels, pooled_height, pooled_width)``; zero for
            RoIs without area.
        pooled_height: The number of bins along y.
        pooled_width: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
    """
    edges = _find_edges(rois, pooled_height, pooled_width, spatial_scale)
    sums = _sum_prefixes(input)
    integral = 0
    for index, weight, _, _ in _iterate_taps(edges, *input.shape[2:]):
        integral = integral + weight[..., None] * sums[index]
    integral = integral.diff(dim=1).diff(dim=2)
    output.copy_(_divide(integral, _find_areas(edges)).movedim(-1, 1))


def prroi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Compute the gradient with respect to the feature maps.

    Args:
        grad_output: ``(rois, channels, pooled_height, pooled_width)``.
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        grad_input: Buffer, ``(batch, channels, height, width)``.
        pooled_height: The number of bins along y.
        pooled_width: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
    """
    batch, channels, height, width = grad_input.shape
    edges = _find_edges(rois, pooled_height, pooled_width, spatial_scale)
    grad = _to_corner_gradient(grad_output, edges)
    padded = (batch, height + 2 * MARGIN, width + 2 * MARGIN, channels)
    sums = grad.new_zeros(padded).flatten(0, 2)
    for index, weight, _, _ in _iterate_taps(edges, height, width):
        index = index.expand(grad.shape[:3]).flatten()
        sums.index_add_(0, index, (weight[..., None] * grad).flatten(0, 2))
    maps = sums.view(padded)
    for axis in (1, 2):
        maps = maps.flip(axis).cumsum(axis).flip(axis)
    inner = maps[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    grad_input.copy_(inner.movedim(-1, 1))


def prroi_pool_coor_backward(
    output: Tensor,
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    grad_rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Compute the gradient with respect to the RoIs.

    Args:
        output: As the forward function filled it.
        grad_output: ``(rois, channels, pooled_height, pooled_width)``.
        input: Feature maps, ``(batch, channels, height, width)``.
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        grad_rois: Buffer, ``(rois, 5)``.
        pooled_height: The number of bins along y.
        pooled_width: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
    """
    edges = _find_edges(rois, pooled_height, pooled_width, spatial_scale)
    grad = _to_corner_gradient(grad_output, edges)
    sums = _sum_prefixes(input)
    grad_y, grad_x = torch.zeros_like(edges.y), torch.zeros_like(edges.x)
    for index, _, slope_y, slope_x in _iterate_taps(edges, *input.shape[2:]):
        value = (sums[index] * grad).sum(dim=-1)
        grad_y += (slope_y * value).sum(dim=2, keepdim=True)
        grad_x += (slope_x * value).sum(dim=1, keepdim=True)
    # The average is the integral over the area, which depends on the RoI too.
    shrink = (output.double() * grad_output.double()).sum(dim=(1, 2, 3))
    size_y = pooled_height * edges.height.flatten()
    size_x = pooled_width * edges.width.flatten()
    y1, y2 = _split_edges(grad_y.flatten(1), _divide(shrink, size_y))
    x1, x2 = _split_edges(grad_x.flatten(1), _divide(shrink, size_x))
    grad_rois.copy_(
        spatial_scale * torch.stack((torch.zeros_like(x1), x1, y1, x2, y2), 1)
    )


def _find_edges(rois: Tensor, rows: int, columns: int, spatial_scale: float) -> Edges:
    """Split RoIs into bins; a RoI of negative size is none."""
    return find_edges(rois.double(), rows, columns, spatial_scale, smallest=0)


def _find_areas(edges: Edges) -> Tensor:
    """Return the areas of a bin of each RoI, ``(rois, 1, 1, 1)``."""
    return (edges.height * edges.width)[..., None]


def _sum_prefixes(input: Tensor) -> Tensor:
    """Return the padded maps' prefix sums as rows of pixels, float64."""
    maps = pad(input.double(), (MARGIN,) * 4).movedim(1, -1)
    return maps.cumsum(1).cumsum(2).flatten(0, 2)


def _iterate_taps(
    edges: Edges, height: int, width: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield the prefix sums that the antiderivative at each corner consists of.

    Args:
        edges: The edges between all bins, float64.
        height: The feature map's height.
        width: The feature map's width.

    Yields:
        The prefix sum's row, its weight, and the weight's derivatives along y and x.
    """
    first_y, weights_y, slopes_y = _weigh(edges.y, height)
    first_x, weights_x, slopes_x = _weigh(edges.x, width)
    top = edges.image * (height + 2 * MARGIN) + first_y
    for row, (weight_y, slope_y) in enumerate(zip(weights_y, slopes_y, strict=True)):
        for column, (weight_x, slope_x) in enumerate(
            zip(weights_x, slopes_x, strict=True)
        ):
            index = (top + row) * (width + 2 * MARGIN) + first_x + column
            yield index, weight_y * weight_x, slope_y * weight_x, weight_y * slope_x


def _weigh(
    position: Tensor, size: int
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the first of three taps along an axis, their weights and derivatives."""
    position = position.clamp(-1, size)  # the map is zero further out
    low = position.floor()
    part = position - low
    weights = (1 - part) ** 2 / 2, 0.5 + part - part**2, part**2 / 2
    slopes = part - 1, 1 - 2 * part, part
    return low.long() + MARGIN - 1, weights, slopes


def _to_corner_gradient(grad_output: Tensor, edges: Edges) -> Tensor:
    """Return the gradient of the antiderivative at the corners, channels last."""
    grad = _divide(grad_output.double().movedim(1, -1), _find_areas(edges))
    # The transpose of the differences along both axes.
    return -pad(-pad(grad, (0, 0, 1, 1)).diff(dim=2), (0, 0, 0, 0, 1, 1)).diff(dim=1)


def _divide(value: Tensor, size: Tensor) -> Tensor:
    """Divide by a size, and return 0 where it is 0."""
    return torch.where(size == 0, 0, value / size)


def _split_edges(grad: Tensor, shrink: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of a RoI's first and last edge.

    Args:
        grad: The gradients of equidistant edges between them, ``(rois, edges)``.
        shrink: By how much the loss falls as the RoI grows, ``(rois,)``.
    """
    part = torch.linspace(0, 1, grad.shape[1], dtype=grad.dtype, device=grad.device)
    last = (grad * part).sum(dim=1)
    return grad.sum(dim=1) - last + shrink, last - shrink
