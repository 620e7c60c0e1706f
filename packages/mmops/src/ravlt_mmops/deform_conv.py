"""Deformable convolutions by torchvision's operator.

Sources: Dai et al., "Deformable Convolutional Networks", ICCV 2017; Zhu et al.,
"Deformable ConvNets v2", CVPR 2019.
"""

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
    """Write the deformable convolution without modulation.

    Args:
        input: Features, shape (N, C, H, W).
        weight: Kernel, shape (C_out, C / group, kH, kW).
        offset: Shifts (y, x) of the sampling points in pixels, shape
            (N, deformable_group * kH * kW * 2, H_out, W_out).
        output: Result, shape (N, C_out, H_out, W_out).
        columns: Unused here.
        ones: Unused here.
        kW, kH, dW, dH, padW, padH, dilationW, dilationH: Kernel size, stride, padding
            and dilation in pixels.
        group: Number of channel groups of the kernel.
        deformable_group: Number of channel groups with offsets of their own.
        im2col_step: Number of images that are convolved together.
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
    """Write the gradients of the features (added) and the offsets.

    Args:
        input, offset, weight: As in the forward pass.
        gradOutput: Gradient of the result, shape (N, C_out, H_out, W_out).
        gradInput: Shape of the features.
        gradOffset: Shape of the offsets.
        columns: Receives the gradient of the kernel for
            `deform_conv_backward_parameters`, which follows with the same buffer:
            torchvision's operator computes all gradients in one call.
        kW, kH, dW, dH, padW, padH, dilationW, dilationH, group, deformable_group,
            im2col_step: As in the forward pass.
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
    """Add the gradient of the kernel, times a factor.

    Args:
        input, offset: As in the forward pass.
        gradOutput: Gradient of the result, shape (N, C_out, H_out, W_out).
        gradWeight: Shape of the kernel.
        columns: What `deform_conv_backward_input` left here; emptied. Empty where the
            kernel alone is trained.
        ones: Unused here.
        kW, kH, dW, dH, padW, padH, dilationW, dilationH, group, deformable_group,
            im2col_step: As in the forward pass.
        scale: Factor of the gradient.
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
    """Write the deformable convolution with modulation.

    Args:
        input: Features, shape (N, C, H, W).
        weight: Kernel, shape (C_out, C / group, kernel_h, kernel_w).
        bias: Shape (C_out,), or empty.
        ones: Unused here.
        offset: Shifts (y, x) of the sampling points in pixels, shape
            (N, deformable_group * kernel_h * kernel_w * 2, H_out, W_out).
        mask: Factors of the samples, shape
            (N, deformable_group * kernel_h * kernel_w, H_out, W_out).
        output: Result, shape (N, C_out, H_out, W_out).
        columns: Unused here.
        kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w:
            Kernel size, stride, padding and dilation in pixels.
        group: Number of channel groups of the kernel.
        deformable_group: Number of channel groups with offsets of their own.
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
    """Write the gradients of offsets and mask, and add all others.

    Args:
        input, weight, bias, offset, mask: As in the forward pass.
        ones, columns: Unused here.
        grad_input, grad_weight, grad_bias, grad_offset, grad_mask: Shapes of their
            tensors.
        grad_output: Gradient of the result, shape (N, C_out, H_out, W_out).
        kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
            group, deformable_group, with_bias: As in the forward pass.
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
    grad_bias = grad_bias if with_bias else None
    grads = _Gradients(grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    _backward(grad_output, input, weight, offset, mask, grads, geometry, 1)


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
    """Convolve `step` images at a time, which bounds the operator's memory."""
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
    """Write or add the gradients as mmcv does, `step` images at a time."""
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
        grad_offset: Gradient in torchvision's convention; changed in place.
        offset: Shape (N, deform_groups * kernel size * 2, H_out, W_out).
        kernel: Height and width of the kernel.
        geometry: Integers of the convolution.
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
