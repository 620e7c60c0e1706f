"""RoIAlign of "Mask R-CNN" (https://arxiv.org/abs/1703.06870)."""

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from ravlt_mmops.precision import at_least_float32, to_kernel_dtype
from ravlt_mmops.sampling import (
    interpolate,
    interpolate_backward,
    iterate_samples,
    split_rois,
    to_pixels,
)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool bilinear samples of every bin.

    Args:
        input: Feature maps, ``(batch, channels, height, width)``.
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        output: Buffer, ``(rois, channels, aligned_height, aligned_width)``.
        argmax_y: Buffer for the rows of the largest samples, -1 where a bin has no
            sample; shape of ``output`` in mode 0, empty in mode 1.
        argmax_x: Buffer for their columns, likewise.
        aligned_height: The number of bins along y.
        aligned_width: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
        sampling_ratio: The number of samples of a bin along each axis; 0 takes one a
            pixel.
        pool_mode: 0 takes the largest sample, 1 the average.
        aligned: Whether pixel centres lie at half pixels of the image.

    Raises:
        ValueError: On the CPU, as in mmcv, if a RoI has a negative size.
    """
    on_cpu = rois.device.type == "cpu"  # elsewhere the check would wait
    if aligned and on_cpu and not (rois[:, 3:] >= rois[:, 1:3]).all():
        raise ValueError(
            "roi_align got RoIs with x2 < x1 or y2 < y1: order the corners of each "
            "box, or clamp its size to zero."
        )
    size = (aligned_height, aligned_width)
    if pool_mode == 1:
        input, rois = _match(input, rois)
        forward = torch.ops.torchvision.roi_align
        with torch.autocast(input.device.type, enabled=False):  # it casts the maps
            pooled = forward(input, rois, spatial_scale, *size, sampling_ratio, aligned)
        output.copy_(pooled)
        return
    batch, channels, height, width = input.shape
    input = at_least_float32(input)
    bins = split_rois(rois.to(input.dtype), *size, spatial_scale, aligned)
    pixels = to_pixels(input)
    # mmcv starts from this number in every dtype, so a bin without samples has it.
    lowest = torch.finfo(torch.float32).min
    largest = input.new_full((len(rois), *size, channels), lowest)
    best_y, best_x = torch.full_like(largest, -1), torch.full_like(largest, -1)
    for some, y, x in iterate_samples(bins, sampling_ratio):
        value = interpolate(pixels, bins.image[some], y, x, height, width)
        better = value > largest[some]
        news = (largest, value), (best_y, y[..., None]), (best_x, x[..., None])
        for best, new in news:
            best[some] = torch.where(better, new, best[some])
    for buffer, found in ((output, largest), (argmax_y, best_y), (argmax_x, best_x)):
        buffer.copy_(found.movedim(-1, 1))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Compute the gradient of :func:`roi_align_forward`.

    Args:
        grad_output: ``(rois, channels, aligned_height, aligned_width)``.
        rois: Image index, x1, y1, x2, y2 in pixels of the image, ``(rois, 5)``.
        argmax_y: As the forward function filled it.
        argmax_x: As the forward function filled it.
        grad_input: Buffer, ``(batch, channels, height, width)``.
        aligned_height: The number of bins along y.
        aligned_width: The number of bins along x.
        spatial_scale: The feature map's size over the image's.
        sampling_ratio: The number of samples of a bin along each axis, or 0.
        pool_mode: 0 takes the largest sample, 1 the average.
        aligned: Whether pixel centres lie at half pixels of the image.
    """
    if pool_mode == 1:
        grad, rois = _match(grad_output, rois)
        backward = torch.ops.torchvision._roi_align_backward
        size = (aligned_height, aligned_width, *grad_input.shape)
        grad_input.copy_(
            backward(grad, rois, spatial_scale, *size, sampling_ratio, aligned)
        )
        return
    channels = grad_input.shape[1]
    y, x = at_least_float32(argmax_y), at_least_float32(argmax_x)
    grad = at_least_float32(grad_output).masked_fill(y == -1, 0)
    channel = torch.arange(channels, device=grad.device)
    plane = (rois[:, :1].long() * channels + channel)[:, :, None, None]
    grad_input.copy_(interpolate_backward(grad, plane, y, x, grad_input.shape))


def _match(values: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the wider of their dtypes, or in float32 for want of a kernel.

    float16 has no odd pixels above 2048, so float32 RoIs must not be rounded to it.
    """
    wider = torch.promote_types(values.dtype, rois.dtype)
    values = to_kernel_dtype(values.to(wider))
    return values, rois.to(values.dtype)
