"""Batch normalization (https://arxiv.org/abs/1502.03167) in steps, between which mmcv
reduces over processes."""

import torch
from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Compute the mean of every channel.

    Args:
        input: ``(batch, channels, pixels)``.
        mean: Buffer, float32, ``(channels,)``.
    """
    mean.copy_(input.mean((0, 2), dtype=torch.float32))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Compute the biased variance of every channel around the given mean.

    Args:
        input: ``(batch, channels, pixels)``.
        mean: float32, ``(channels,)``.
        var: Buffer, float32, ``(channels,)``.
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
    """Normalize the input and update the running statistics.

    Args:
        input: ``(batch, channels, pixels)``.
        mean: The mean of all processes, float32, ``(channels,)``.
        var: The variance of all processes, float32, ``(channels,)``.
        weight: float32, ``(channels,)``, or None.
        bias: float32, ``(channels,)``, or None.
        running_mean: Updated in place, ``(channels,)``, or None.
        running_var: Updated in place, ``(channels,)``, or None.
        norm: Buffer for the input at mean 0 and variance 1, float32, of the shape of
            ``input``.
        std: Buffer for the standard deviations, ``(channels,)``.
        output: Buffer for ``norm * weight + bias``, of the shape of ``input``.
        eps: The addend of the variance.
        momentum: The weight of the new statistics. A tensor stays on its device.
        group_size: The number of processes.
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
    """Compute this process's gradients of weight and bias.

    Args:
        grad_output: ``(batch, channels, pixels)``.
        norm: The normalized input, float32, likewise.
        grad_weight: Buffer, float32, ``(channels,)``.
        grad_bias: Buffer, float32, ``(channels,)``.
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
    """Compute the gradient of the input.

    Args:
        grad_output: ``(batch, channels, pixels)``.
        weight: float32, ``(channels,)``.
        grad_weight: The mean of all processes, float32, ``(channels,)``.
        grad_bias: The mean of all processes, float32, ``(channels,)``.
        norm: The normalized input, float32, of the shape of ``grad_output``.
        std: The standard deviations, float32, ``(channels,)``.
        grad_input: Buffer of the shape of ``grad_output``.
    """
    count = norm.size(0) * norm.size(2)
    shared = torch.addcmul(grad_bias[:, None], norm, grad_weight[:, None]).div_(count)
    grad_input.copy_((grad_output - shared).mul_((weight / std)[:, None]))
