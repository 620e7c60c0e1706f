"""Content-aware upsampling.

Source: Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ravlt_mmops.precision import at_least_float32


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the upsampled features.

    Args:
        features: Shape (N, C, H, W).
        masks: Kernels of all output pixels, shape
            (N, group_size * kernel_size**2, H * scale_factor, W * scale_factor).
        output: Shape (N, C, H * scale_factor, W * scale_factor).
        kernel_size: Odd side of the kernels in input pixels.
        group_size: Number of channel groups with kernels of their own.
        scale_factor: Integer ratio of the resolutions.
    """
    features, masks = at_least_float32(features), at_least_float32(masks)
    output.copy_(_reassemble(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and kernels.

    Args:
        top_grad: Gradient of the output.
        features, masks, kernel_size, group_size, scale_factor: As in the forward pass.
        bottom_grad: Shape of the features.
        mask_grad: Shape of the kernels.
    """
    inputs = [at_least_float32(t).detach().requires_grad_() for t in (features, masks)]
    with torch.enable_grad():
        output = _reassemble(*inputs, kernel_size, group_size, scale_factor)
    grads = torch.autograd.grad(output, inputs, top_grad.to(output))
    bottom_grad.copy_(grads[0])
    mask_grad.copy_(grads[1])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the upsampled features and keep the input for the backward pass.

    Args:
        features, masks, output, kernel_size, group_size, scale_factor: As in
            `carafe_naive_forward`.
        rfeatures: Receives the features; mmcv hands them to `carafe_backward`.
        routput, rmasks: Unused here.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and kernels.

    Args:
        top_grad, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor:
            As in `carafe_naive_backward`.
        rfeatures: The features as `carafe_forward` left them.
        rtop_grad, rbottom_grad_hs, rbottom_grad, rmask_grad: Unused here.
    """
    carafe_naive_backward(
        top_grad,
        rfeatures,
        masks,
        bottom_grad,
        mask_grad,
        kernel_size,
        group_size,
        scale_factor,
    )


def _reassemble(
    features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int
) -> Tensor:
    """Sum shifted features times their factors, one kernel point after the other.

    The pixels of the output that share an input pixel lie in dimensions of their own,
    so all factors are contiguous at the input's resolution. (PyTorch's pixel shuffling
    fails for empty batches.)
    """
    n, channels, height, width = features.shape
    padded = F.pad(features, (kernel // 2,) * 4)
    padded = padded.unflatten(1, (groups, channels // groups, 1, 1))
    factors = masks.reshape(n, groups, 1, kernel**2, height, scale, width, scale)
    factors = factors.permute(3, 0, 1, 2, 5, 7, 4, 6).contiguous()
    fine = padded.new_zeros(n, groups, channels // groups, scale, scale, height, width)
    for point, factor in enumerate(factors.unbind()):
        y, x = divmod(point, kernel)
        fine.addcmul_(padded[..., y : y + height, x : x + width], factor)
    fine = fine.permute(0, 1, 2, 5, 3, 6, 4)
    return fine.reshape(n, channels, height * scale, width * scale)
