"""Multi-scale deformable attention of "Deformable DETR"
(https://arxiv.org/abs/2010.04159)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ravlt_mmops.precision import at_least_float32


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return the weighted sums of bilinear samples.

    Args:
        value: The values of all levels, ``(batch, tokens, heads, channels)``.
        value_spatial_shapes: The levels' heights and widths, ``(levels, 2)``.
        value_level_start_index: The levels' first tokens, ``(levels,)``.
        sampling_locations: x, y in units of the map, 0 to 1 from edge to edge,
            ``(batch, queries, heads, levels, points, 2)``.
        attention_weights: ``(batch, queries, heads, levels, points)``.
        im2col_step: Unused here.

    Returns:
        The sums in the dtype of the values, ``(batch, queries, heads * channels)``.

    Raises:
        NotImplementedError: If the values are bfloat16.
    """
    if value.dtype == torch.bfloat16:
        raise NotImplementedError(
            "MultiScaleDeformableAttention got bfloat16 values, and mmcv rounds the "
            "sampling locations to that dtype, whose 8 bits are too few for the "
            "pixels of a map: use float16 AMP or float32."
        )
    rows, factors = _samples(
        value,
        value_spatial_shapes,
        value_level_start_index,
        at_least_float32(sampling_locations),
        at_least_float32(attention_weights),
    )
    output = F.embedding_bag(rows, _rows(value), per_sample_weights=factors, mode="sum")
    shape = *attention_weights.shape[:2], value.size(2) * value.size(3)
    return output.view(shape).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Compute the gradients of :func:`ms_deform_attn_forward`.

    Args:
        value: As in the forward pass.
        value_spatial_shapes: As in the forward pass.
        value_level_start_index: As in the forward pass.
        sampling_locations: As in the forward pass.
        attention_weights: As in the forward pass.
        grad_output: ``(batch, queries, heads * channels)``.
        grad_value: Buffer of the shape of ``value``.
        grad_sampling_loc: Buffer of the shape of ``sampling_locations``.
        grad_attn_weight: Buffer of the shape of ``attention_weights``.
        im2col_step: Unused here.
    """
    inputs = [
        at_least_float32(tensor).detach().requires_grad_()
        for tensor in (sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        rows, factors = _samples(
            value, value_spatial_shapes, value_level_start_index, *inputs
        )
    values = _rows(value)
    grad_output = grad_output.reshape(-1, values.size(1)).to(values.dtype)

    # The lookup's own gradient sorts all samples and, on GPUs, holds a row of channels
    # for each of them and counts threads with 32 bits. Here the samples of the same
    # number in all bags take their turn.
    grad_values, product = torch.zeros_like(values), torch.empty_like(grad_output)
    rows, columns = rows.t().contiguous(), factors.detach().t().contiguous()
    grad_factors = torch.empty_like(columns)
    for row, factor, grad_factor in zip(rows, columns, grad_factors, strict=True):
        torch.index_select(values, 0, row, out=product)
        torch.sum(product.mul_(grad_output), dim=1, out=grad_factor)
        torch.mul(grad_output, factor[:, None], out=product)
        grad_values.index_add_(0, row, product)
    grad_value.copy_(grad_values.view(value.shape))
    grads = torch.autograd.grad(factors, inputs, grad_factors.t())
    grad_sampling_loc.copy_(grads[0])
    grad_attn_weight.copy_(grads[1])


def _rows(value: Tensor) -> Tensor:
    """Return values as one row of channels for each image, token and head."""
    return at_least_float32(value).reshape(-1, value.size(-1))


def _samples(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the rows of the values that each query and head sums, and their factors.

    Nothing here depends on the levels' shapes on the host, so a GPU need not wait.

    Args:
        value: ``(batch, tokens, heads, channels)``.
        shapes: The levels' heights and widths, ``(levels, 2)``.
        starts: The levels' first tokens, ``(levels,)``.
        locations: x, y, ``(batch, queries, heads, levels, points, 2)``.
        weights: ``(batch, queries, heads, levels, points)``.

    Returns:
        The row indices, int32, and factors of the four pixels around every point,
        ``(batch * queries * heads, 4 * levels * points)`` each.
    """
    batch, tokens, heads, _ = value.shape
    queries, points = weights.size(1), weights.size(4)
    # All points of all levels lie in the last dimension, at least 16 numbers mostly:
    # broadcasting over the few points of a level is several times slower on CPUs.
    height, width, start = (
        per_level.int()[:, None].expand(-1, points).flatten()
        for per_level in (*shapes.unbind(-1), starts)
    )
    x, y = locations.flatten(3, 4).unbind(-1)
    weights = weights.flatten(3, 4)
    image = torch.arange(batch, dtype=torch.int32, device=value.device)
    head = torch.arange(heads, dtype=torch.int32, device=value.device)
    first = (image.view(-1, 1, 1, 1) * tokens + start) * heads + head.view(-1, 1)

    columns = _neighbours(x, width)
    rows, factors = [], []
    for line, line_factor in _neighbours(y, height):
        line, line_factor = line * (width * heads) + first, line_factor * weights
        for column, column_factor in columns:
            rows.append(line + column * heads)
            factors.append(line_factor * column_factor)
    shape = batch * queries * heads, 4 * width.numel()
    return torch.stack(rows, -2).view(shape), torch.stack(factors, -2).view(shape)


def _neighbours(location: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the pixels before and after every point of an axis.

    Args:
        location: Places in units of the map, ``(..., points)``.
        size: The lengths of the points' maps in pixels, ``(points,)``.

    Returns:
        Two pairs of pixel indices, int32, and linear factors, ``(..., points)`` each.
        Pixels off the map have index 0 and factor 0.
    """
    position = location * size - 0.5
    low = position.detach().floor()
    high = low + 1
    factor = position - low
    # A point exactly at -1 is off the map in mmcv, so that it has no derivative.
    low_inside = (low >= 0) & (low < size)
    high_inside = (position > -1) & (high < size)
    return [
        (low.where(low_inside, 0).int(), (1 - factor).where(low_inside, 0)),
        (high.where(high_inside, 0).int(), factor.where(high_inside, 0)),
    ]
