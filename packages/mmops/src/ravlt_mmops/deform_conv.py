"""Deformable convolutions of "Deformable Convolutional Networks"
(https://arxiv.org/abs/1703.06211) and "Deformable ConvNets v2"
(https://arxiv.org/abs/1811.11168) by torchvision's operator."""

import math
from typing import NamedTuple

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from ravlt_mmops.precision import at_least_float32, to_kernel_dtype


class _Geometry(NamedTuple):
    """The integers of a convolution in the order of torchvision's operator."""

    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    deform_groups: int


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Compute the deformable convolution without modulation.

    Args:
        input: Feature maps, ``(batch, channels, height, width)``.
        weight: The kernel, ``(out_channels, channels / group, kH, kW)``.
        offset: y, x by which the sampling points are moved, in pixels,
            ``(batch, deformable_group * kH * kW * 2, out_height, out_width)``.
        output: Buffer, ``(batch, out_channels, out_height, out_width)``.
        columns: Unused here.
        ones: Unused here.
        kW: The kernel's width.
        kH: The kernel's height.
        dW: The stride along x.
        dH: The stride along y.
        padW: The padding along x in pixels.
        padH: The padding along y in pixels.
        dilationW: The dilation along x.
        dilationH: The dilation along y.
        group: The number of channel groups of the kernel.
        deformable_group: The number of channel groups with offsets of their own.
        im2col_step: The number of images that are convolved together.
    """
    geometry = _Geometry(
        dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    )
    no_mask = offset[:, :0]
    _forward(input, weight, offset, no_mask, None, output, geometry, im2col_step)


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Compute the offsets' gradient, and add the feature maps'.

    Args:
        input: Feature maps, ``(batch, channels, height, width)``.
        offset: As in the forward pass.
        gradOutput: ``(batch, out_channels, out_height, out_width)``.
        gradInput: Buffer of the shape of ``input``.
        gradOffset: Buffer of the shape of ``offset``.
        weight: The kernel, ``(out_channels, channels / group, kH, kW)``.
        columns: Buffer for the kernel's gradient, which
            :func:`deform_conv_backward_parameters` gets next: torchvision's operator
            computes all gradients in one call.
        kW: The kernel's width.
        kH: The kernel's height.
        dW: The stride along x.
        dH: The stride along y.
        padW: The padding along x in pixels.
        padH: The padding along y in pixels.
        dilationW: The dilation along x.
        dilationH: The dilation along y.
        group: The number of channel groups of the kernel.
        deformable_group: The number of channel groups with offsets of their own.
        im2col_step: The number of images that are convolved together.
    """
    geometry = _Geometry(
        dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    )
    grad_weight = torch.zeros_like(weight, dtype=columns.dtype)
    grads = _Gradients(gradInput, grad_weight, gradOffset, None, None)
    no_mask = offset[:, :0]
    _backward(gradOutput, input, weight, offset, no_mask, grads, geometry, im2col_step)
    columns.set_(grad_weight)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add the kernel's gradient, times a factor.

    Args:
        input: Feature maps, ``(batch, channels, height, width)``.
        offset: As in the forward pass.
        gradOutput: ``(batch, out_channels, out_height, out_width)``.
        gradWeight: Buffer, ``(out_channels, channels / group, kH, kW)``.
        columns: As :func:`deform_conv_backward_input` filled it, or empty where the
            kernel alone is trained; emptied.
        ones: Unused here.
        kW: The kernel's width.
        kH: The kernel's height.
        dW: The stride along x.
        dH: The stride along y.
        padW: The padding along x in pixels.
        padH: The padding along y in pixels.
        dilationW: The dilation along x.
        dilationH: The dilation along y.
        group: The number of channel groups of the kernel.
        deformable_group: The number of channel groups with offsets of their own.
        scale: The factor of the gradient.
        im2col_step: The number of images that are convolved together.
    """
    if columns.shape != gradWeight.shape:
        # The kernel's own gradient does not depend on the kernel's values.
        deform_conv_backward_input(
            input,
            offset,
            gradOutput,
            torch.zeros_like(input),
            torch.empty_like(offset),
            torch.zeros_like(gradWeight),
            columns,
            kW,
            kH,
            dW,
            dH,
            padW,
            padH,
            dilationW,
            dilationH,
            group,
            deformable_group,
            im2col_step,
        )
    gradWeight.add_(columns, alpha=scale)
    columns.set_()


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Compute the deformable convolution with modulation.

    Args:
        input: Feature maps, ``(batch, channels, height, width)``.
        weight: The kernel, ``(out_channels, channels / group, kernel_h, kernel_w)``.
        bias: ``(out_channels,)``, or empty.
        ones: Unused here.
        offset: y, x by which the sampling points are moved, in pixels, ``(batch,
            deformable_group * kernel_h * kernel_w * 2, out_height, out_width)``.
        mask: The samples' factors, ``(batch, deformable_group * kernel_h * kernel_w,
            out_height, out_width)``.
        output: Buffer, ``(batch, out_channels, out_height, out_width)``.
        columns: Unused here.
        kernel_h: The kernel's height.
        kernel_w: The kernel's width.
        stride_h: The stride along y.
        stride_w: The stride along x.
        pad_h: The padding along y in pixels.
        pad_w: The padding along x in pixels.
        dilation_h: The dilation along y.
        dilation_w: The dilation along x.
        group: The number of channel groups of the kernel.
        deformable_group: The number of channel groups with offsets of their own.
        with_bias: Whether the bias is added.
    """
    geometry = _Geometry(
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
        group,
        deformable_group,
    )
    bias = bias if with_bias else None
    offset, mask = _leading(offset, output), _leading(mask, output)
    _forward(input, weight, offset, mask, bias, output, geometry, 1)


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Compute the gradients of offsets and mask, and add all others.

    Args:
        input: Feature maps, ``(batch, channels, height, width)``.
        weight: The kernel, ``(out_channels, channels / group, kernel_h, kernel_w)``.
        bias: As in the forward pass.
        ones: Unused here.
        offset: As in the forward pass.
        mask: As in the forward pass.
        columns: Unused here.
        grad_input: Buffer of the shape of ``input``.
        grad_weight: Buffer of the shape of ``weight``.
        grad_bias: Buffer of the shape of ``bias``.
        grad_offset: Buffer of the shape of ``offset``.
        grad_mask: Buffer of the shape of ``mask``.
        grad_output: ``(batch, out_channels, out_height, out_width)``.
        kernel_h: The kernel's height.
        kernel_w: The kernel's width.
        stride_h: The stride along y.
        stride_w: The stride along x.
        pad_h: The padding along y in pixels.
        pad_w: The padding along x in pixels.
        dilation_h: The dilation along y.
        dilation_w: The dilation along x.
        group: The number of channel groups of the kernel.
        deformable_group: The number of channel groups with offsets of their own.
        with_bias: Whether the bias has a gradient.
    """
    geometry = _Geometry(
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
        group,
        deformable_group,
    )
    # The leading numbers of contiguous buffers are views; mmcv hands over zeros.
    whole_offset, whole_mask = grad_offset.contiguous(), grad_mask.contiguous()
    offset, mask, part_of_offset, part_of_mask = (
        _leading(tensor, grad_output)
        for tensor in (offset, mask, whole_offset, whole_mask)
    )
    grad_bias = grad_bias if with_bias else None
    grads = _Gradients(grad_input, grad_weight, part_of_offset, part_of_mask, grad_bias)
    _backward(grad_output, input, weight, offset, mask, grads, geometry, 1)
    grad_offset.copy_(whole_offset)  # nothing to do where it was contiguous
    grad_mask.copy_(whole_mask)


def _leading(maps: Tensor, output: Tensor) -> Tensor:
    """Return the leading numbers of each image as maps of the output's size.

    mmcv's kernels take offsets and mask for maps of that size, whatever their own size
    is. mmdet's DyHead depends on it: it passes those of the next larger level.

    Args:
        maps: ``(batch, points, height, width)``.
        output: ``(batch, out_channels, out_height, out_width)``.

    Returns:
        A view of contiguous maps, ``(batch, points, out_height, out_width)``.

    Raises:
        ValueError: If the maps are smaller than the output.
    """
    shape = (maps.size(1), *output.shape[2:])
    if maps.shape[1:] == shape:
        return maps
    flat = maps.flatten(1)
    if flat.size(1) < math.prod(shape):
        raise ValueError(
            f"modulated_deform_conv got offsets or a mask of {tuple(maps.shape[2:])} "
            f"for an output of {tuple(output.shape[2:])}: make them as large as the "
            f"output."
        )
    return flat[:, : math.prod(shape)].unflatten(1, shape)


class _Gradients(NamedTuple):
    """Buffers in the order in which torchvision's operator returns gradients."""

    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor | None
    bias: Tensor | None


def _forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: _Geometry,
    step: int,
) -> None:
    """Convolve ``step`` images at a time, which bounds the operator's memory."""
    weight = to_kernel_dtype(weight)
    bias = weight.new_zeros(weight.size(0)) if bias is None else bias.to(weight)
    for start in range(0, len(input), step):
        images = slice(start, start + step)
        output[images] = torch.ops.torchvision.deform_conv2d(
            input[images].to(weight),
            weight,
            offset[images].to(weight),
            mask[images].to(weight),
            bias,
            *geometry,
            mask.size(1) > 0,
        )


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    grads: _Gradients,
    geometry: _Geometry,
    step: int,
) -> None:
    """Replace or add to the gradients as mmcv does, ``step`` images at a time."""
    weight = to_kernel_dtype(weight)
    bias = weight.new_zeros(weight.size(0))
    # Sums in half precision would lose digits with every image.
    sum_weight = torch.zeros_like(at_least_float32(weight))
    sum_bias = torch.zeros_like(at_least_float32(bias))
    for start in range(0, len(input), step):
        images = slice(start, start + step)
        grad_input, grad_weight, grad_offset, grad_mask, grad_bias = (
            torch.ops.torchvision._deform_conv2d_backward(
                grad_output[images].to(weight),
                input[images].to(weight),
                weight,
                offset[images].to(weight),
                mask[images].to(weight),
                bias,
                *geometry,
                mask.size(1) > 0,
            )
        )
        _drop_outer_border(grad_offset, offset[images], weight.shape[2:], geometry)
        grads.input[images] += grad_input
        sum_weight += grad_weight
        sum_bias += grad_bias
        grads.offset[images] = grad_offset
        if grads.mask is not None:
            grads.mask[images] = grad_mask
    grads.weight.add_(sum_weight)
    if grads.bias is not None:
        grads.bias.add_(sum_bias)


def _drop_outer_border(
    grad_offset: Tensor, offset: Tensor, kernel: torch.Size, geometry: _Geometry
) -> None:
    """Clear the offsets' gradient of points that lie exactly at coordinate -1.

    The sample is not differentiable there. mmcv takes the derivative from the outside,
    torchvision the one from the inside. Offsets of zero, as they are initialized, meet
    this point everywhere along the upper and left border.

    Args:
        grad_offset: The gradient in torchvision's convention; changed in place.
        offset: ``(images, deform_groups * kernel size * 2, out_height, out_width)``.
        kernel: The kernel's height and width.
        geometry: The integers of the convolution.
    """
    shape = (len(offset), geometry.deform_groups, *kernel, 2, *offset.shape[2:])
    grad_offset, offset = grad_offset.view(shape), offset.reshape(shape)
    for axis in range(2):
        stride, pad, dilation = geometry[axis:6:2]
        taps = torch.arange(kernel[axis], device=offset.device) * dilation - pad
        pixels = torch.arange(shape[5 + axis], device=offset.device) * stride
        taps = taps.view(-1, 1, 1, 1) if axis == 0 else taps.view(-1, 1, 1)
        pixels = pixels.view(-1, 1) if axis == 0 else pixels
        at_border = offset[..., axis, :, :] + (taps + pixels) == -1
        grad_offset[..., axis, :, :].masked_fill_(at_border, 0)
