"""Content-aware upsampling of "CARAFE: Content-Aware ReAssembly of FEatures"
(https://arxiv.org/abs/1905.02188)."""

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
    """Sum the features around every pixel of the output times its kernel.

    Args:
        features: Feature maps, ``(batch, channels, height, width)``.
        masks: The kernels of all pixels of the output, ``(batch, group_size *
            kernel_size**2, height * scale_factor, width * scale_factor)``.
        output: Buffer, ``(batch, channels, height * scale_factor, width *
            scale_factor)``.
        kernel_size: The odd side of the kernels in pixels of the input.
        group_size: The number of channel groups with kernels of their own.
        scale_factor: The integer ratio of the resolutions.
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
    """Compute the gradients of :func:`carafe_naive_forward`.

    Args:
        top_grad: The gradient of the output.
        features: As in the forward pass.
        masks: As in the forward pass.
        bottom_grad: Buffer of the shape of ``features``.
        mask_grad: Buffer of the shape of ``masks``.
        kernel_size: As in the forward pass.
        group_size: As in the forward pass.
        scale_factor: As in the forward pass.
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
    """Do as :func:`carafe_naive_forward` and keep the features.

    Args:
        features: Feature maps, ``(batch, channels, height, width)``.
        masks: As in :func:`carafe_naive_forward`.
        rfeatures: Buffer for the features, which :func:`carafe_backward` gets.
        routput: Unused here.
        rmasks: Unused here.
        output: As in :func:`carafe_naive_forward`.
        kernel_size: As in :func:`carafe_naive_forward`.
        group_size: As in :func:`carafe_naive_forward`.
        scale_factor: As in :func:`carafe_naive_forward`.
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
    """Compute the gradients of :func:`carafe_forward`.

    Args:
        top_grad: The gradient of the output.
        rfeatures: As the forward function filled it.
        masks: As in the forward pass.
        rtop_grad: Unused here.
        rbottom_grad_hs: Unused here.
        rbottom_grad: Unused here.
        rmask_grad: Unused here.
        bottom_grad: Buffer of the shape of the features.
        mask_grad: Buffer of the shape of ``masks``.
        kernel_size: As in the forward pass.
        group_size: As in the forward pass.
        scale_factor: As in the forward pass.
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
