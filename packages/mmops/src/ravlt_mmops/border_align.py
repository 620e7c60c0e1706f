"""BorderAlign of "BorderDet" (https://arxiv.org/abs/2007.11056)."""

import torch
from torch import Tensor

from ravlt_mmops.precision import at_least_float32
from ravlt_mmops.sampling import interpolate, interpolate_backward, to_pixels


def border_align_forward(
    input: Tensor, boxes: Tensor, output: Tensor, argmax_idx: Tensor, pool_size: int
) -> None:
    """Take the largest of equidistant samples on each border of a box.

    Args:
        input: Feature maps of the top, left, bottom and right border,
            ``(batch, 4 * channels, height, width)``.
        boxes: x1, y1, x2, y2 in pixels of the feature map, ``(batch, boxes, 4)``.
        output: Buffer, ``(batch, channels, boxes, 4)``.
        argmax_idx: Buffer for the numbers of the largest samples, int32, likewise.
        pool_size: The number of steps between the samples of a border.
    """
    input = at_least_float32(input)
    height, width = input.shape[2:]
    maps = input.reshape(-1, 4, input.shape[1] // 4, height, width)
    plane = torch.arange(4 * len(maps), device=input.device).view(-1, 4, 1)
    y, x, step_y, step_x = _walk(boxes.to(input.dtype), pool_size)
    pixels = to_pixels(maps)
    largest = interpolate(pixels, plane, y, x, height, width)
    index = torch.zeros_like(largest, dtype=torch.int32)
    for step in range(1, pool_size + 1):
        place = y + step * step_y, x + step * step_x
        value = interpolate(pixels, plane, *place, height, width)
        better = value > largest
        largest = torch.where(better, value, largest)
        index.masked_fill_(better, step)
    output.copy_(largest.transpose(1, 3))
    argmax_idx.copy_(index.transpose(1, 3))


def border_align_backward(
    grad_output: Tensor,
    boxes: Tensor,
    argmax_idx: Tensor,
    grad_input: Tensor,
    pool_size: int,
) -> None:
    """Compute the gradient of :func:`border_align_forward`.

    Args:
        grad_output: ``(batch, channels, boxes, 4)``.
        boxes: x1, y1, x2, y2 in pixels of the feature map, ``(batch, boxes, 4)``.
        argmax_idx: As the forward function filled it.
        grad_input: Buffer, ``(batch, 4 * channels, height, width)``.
        pool_size: The number of steps between the samples of a border.
    """
    batch, channels, height, width = grad_input.shape
    shape = torch.Size((batch, 4, channels // 4, height, width))
    plane = torch.arange(batch * channels, device=grad_input.device)
    grad = at_least_float32(grad_output).movedim(3, 1)
    y, x, step_y, step_x = (
        v[:, :, None] for v in _walk(boxes.to(grad.dtype), pool_size)
    )
    index = argmax_idx.movedim(3, 1)
    y, x = y + index * step_y, x + index * step_x
    maps = interpolate_backward(grad, plane.view(*shape[:3], 1), y, x, shape)
    grad_input.copy_(maps.view(grad_input.shape))


def _walk(boxes: Tensor, pool_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the first samples' y and x and the steps along both.

    Top and left start at the upper left corner, bottom and right at the lower right.

    Args:
        boxes: x1, y1, x2, y2, ``(batch, boxes, 4)``.
        pool_size: The number of steps.

    Returns:
        Four tensors ``(batch, 4, boxes)``.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    step_y, step_x = (y2 - y1) / pool_size, (x2 - x1) / pool_size
    none = torch.zeros_like(x1)
    return (
        torch.stack((y1, y1, y2, y2), dim=1),
        torch.stack((x1, x1, x2, x2), dim=1),
        torch.stack((none, step_y, none, -step_y), dim=1),
        torch.stack((step_x, none, -step_x, none), dim=1),
    )
