"""Batch normalization in steps, between which mmcv reduces over processes.

Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015.
"""

import torch
from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write the mean of every channel.

    Args:
        input: Shape (N, C, pixels).
        mean: float32, shape (C,).
    """
    mean.copy_(input.mean((0, 2), dtype=torch.float32))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the biased variance of every channel around the given mean.

    Args:
        input: Shape (N, C, pixels).
        mean: float32, shape (C,).
        var: float32, shape (C,).
    """
    var.copy_((input - mean[:, None]).square_().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Write the normalized input and update the running statistics.

    Args:
        input: Shape (N, C, pixels).
        mean, var: Statistics of all processes, float32, shape (C,).
        weight, bias: float32, shape (C,), or None.
        running_mean, running_var: Updated in place, shape (C,), or None.
        norm: Receives the input at mean 0 and variance 1, float32, shape of the input.
        std: Receives the standard deviations, shape (C,).
        output: Receives norm * weight + bias, shape of the input.
        eps: Addend of the variance.
        momentum: Weight of the new statistics. A tensor stays on its device.
        group_size: Number of processes.
    """
    std.copy_((var + eps).sqrt_())
    torch.sub(input, mean[:, None], out=norm).div_(std[:, None])
    if weight is None:
        output.copy_(norm)
    else:
        output.copy_(torch.addcmul(bias[:, None], norm, weight[:, None]))
    if running_mean is not None:
        count = input.size(0) * input.size(2) * group_size
        unbiased = var * (count / (count - 1)) if count > 1 else var
        running_mean.mul_(1 - momentum).add_(mean * momentum)
        running_var.mul_(1 - momentum).add_(unbiased * momentum)


def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Write this process's gradients of weight and bias.

    Args:
        grad_output: Gradient of the output, shape (N, C, pixels).
        norm: The normalized input, float32, same shape.
        grad_weight, grad_bias: float32, shape (C,).
    """
    grad_weight.copy_((grad_output * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.sum((0, 2), dtype=torch.float32))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient of the input.

    Args:
        grad_output: Gradient of the output, shape (N, C, pixels).
        weight, std: float32, shape (C,).
        grad_weight, grad_bias: Mean gradients of all processes, float32, shape (C,).
        norm: The normalized input, float32, shape of the input.
        grad_input: Shape of the input.
    """
    count = norm.size(0) * norm.size(2)
    shared = torch.addcmul(grad_bias[:, None], norm, grad_weight[:, None]).div_(count)
    grad_input.copy_((grad_output - shared).mul_((weight / std)[:, None]))
