"""Multi-scale deformable attention.

Source: Zhu et al., "Deformable DETR", ICLR 2021.
"""

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
    """Return the attended values.

    Args:
        value: Values of all levels, shape (N, tokens, heads, channels).
        value_spatial_shapes: Height and width of every level, shape (levels, 2).
        value_level_start_index: First token of every level, shape (levels,).
        sampling_locations: Points (x, y) in units of the map, 0 to 1 from edge to
            edge, shape (N, queries, heads, levels, points, 2).
        attention_weights: Shape (N, queries, heads, levels, points).
        im2col_step: Unused here.

    Returns:
        Shape (N, queries, heads * channels), in the dtype of the values.
    """
    output = _attend(
        at_least_float32(value),
        value_spatial_shapes,
        value_level_start_index,
        at_least_float32(sampling_locations),
        at_least_float32(attention_weights),
    )
    return output.to(value.dtype)


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
    """Write the gradients of values, locations and weights.

    Args:
        value, value_spatial_shapes, value_level_start_index, sampling_locations,
            attention_weights, im2col_step: As in the forward pass.
        grad_output: Shape (N, queries, heads * channels).
        grad_value, grad_sampling_loc, grad_attn_weight: Shapes of their tensors.
    """
    inputs = [
        at_least_float32(tensor).detach().requires_grad_()
        for tensor in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = _attend(
            inputs[0], value_spatial_shapes, value_level_start_index, *inputs[1:]
        )
    grads = torch.autograd.grad(output, inputs, grad_output.to(output))
    for buffer, grad in zip(
        (grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True
    ):
        buffer.copy_(grad)


def _attend(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """Sum the four neighbours of all points of a query and head in one lookup.

    Nothing here depends on the levels' shapes on the host, so a GPU need not wait.
    """
    batch, tokens, heads, channels = value.shape
    queries = locations.size(1)
    tokens_of_points, factors = _neighbours(shapes, starts, locations)
    image = torch.arange(batch, device=value.device) * tokens
    head = torch.arange(heads, device=value.device)
    rows = tokens_of_points.add_(image.view(-1, 1, 1, 1, 1, 1, 1)).mul_(heads)
    rows.add_(head.view(-1, 1, 1, 1, 1))
    bags = batch * queries * heads
    output = F.embedding_bag(
        rows.view(bags, -1),
        value.reshape(-1, channels),
        per_sample_weights=(factors * weights[..., None, None]).view(bags, -1),
        mode="sum",
    )
    return output.view(batch, queries, heads * channels)


def _neighbours(
    shapes: Tensor, starts: Tensor, locations: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the four tokens around every point and their bilinear factors.

    Args:
        shapes: Height and width of every level, shape (levels, 2).
        starts: First token of every level, shape (levels,).
        locations: Points (x, y), shape (N, queries, heads, levels, points, 2).

    Returns:
        Token indices and factors, shapes (N, queries, heads, levels, points, 2, 2) over
        the neighbours' y and x. Neighbours off the map have factor 0 and index 0.
    """
    sizes = shapes.flip(-1)[:, None]
    position = locations * sizes - 0.5
    low = position.detach().floor()
    high_factor = position - low
    # A point exactly at -1 is off the map in mmcv, so that it has no derivative.
    inside = torch.stack(
        ((low >= 0) & (low < sizes), (position > -1) & (low + 1 < sizes)), -1
    )
    factors = torch.stack((1 - high_factor, high_factor), -1).where(inside, 0)
    pixels = torch.stack((low, low + 1), -1).where(inside, 0).long()
    x, y = pixels.unbind(-2)
    x_factor, y_factor = factors.unbind(-2)
    lines = starts.view(-1, 1, 1) + y * shapes[:, 1].view(-1, 1, 1)
    return (
        lines[..., None] + x[..., None, :],
        y_factor[..., None] * x_factor[..., None, :],
    )
