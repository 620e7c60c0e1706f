"""Focal losses of "Focal Loss for Dense Object Detection"
(https://arxiv.org/abs/1708.02002), of logits and of softmax probabilities."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ravlt_mmops.precision import at_least_float32

# mmcv's bound for logarithms of probabilities, in all dtypes.
TINY = torch.finfo(torch.float32).tiny


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the focal loss of every logit.

    Args:
        input: Logits, ``(rows, classes)``.
        target: The rows' classes, ``(rows,)``. An index that is no class, such as the
            number of classes, means background.
        weight: The classes' weights, ``(classes,)``, or empty. Background rows weigh
            1.
        output: Buffer, ``(rows, classes)``.
        gamma: The focusing exponent.
        alpha: The weight of the positive entries; negative ones weigh 1 - alpha.
    """
    logits = at_least_float32(input)
    losses = _negative_loss(logits, gamma).mul_(1 - alpha)
    column, is_object = _columns(target, input.size(1))
    positives = _negative_loss(-logits.gather(1, column), gamma).mul_(alpha)
    _replace(losses, column, is_object, positives)
    output.copy_(_weigh(losses, weight, column, is_object))


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the derivative of every focal loss by its logit.

    Args:
        input: Logits, ``(rows, classes)``.
        target: As in the forward pass.
        weight: As in the forward pass.
        grad_input: Buffer, ``(rows, classes)``.
        gamma: The focusing exponent.
        alpha: The weight of the positive entries; negative ones weigh 1 - alpha.
    """
    logits = at_least_float32(input)
    slopes = _negative_slope(logits, gamma).mul_(1 - alpha)
    column, is_object = _columns(target, input.size(1))
    positives = _negative_slope(-logits.gather(1, column), gamma).mul_(-alpha)
    _replace(slopes, column, is_object, positives)
    grad_input.copy_(_weigh(slopes, weight, column, is_object))


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the focal loss of every row; background rows cost nothing.

    Args:
        input: Softmax probabilities, ``(rows, classes)``.
        target: The rows' classes, ``(rows,)``. An index that is no class means
            background.
        weight: The classes' weights, ``(classes,)``, or empty.
        output: Buffer, ``(rows,)``.
        gamma: The focusing exponent.
        alpha: The factor of all losses.
    """
    column, is_object = _columns(target, input.size(1))
    p = at_least_float32(input.gather(1, column))
    losses = (1 - p).pow_(gamma).mul_(p.clamp(min=TINY).log_()).mul_(-alpha)
    losses.masked_fill_(~is_object, 0)
    output.copy_(_weigh(losses, weight, column, is_object).squeeze(1))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the derivative of every row's loss by its logits.

    Args:
        input: Softmax probabilities, ``(rows, classes)``.
        target: As in the forward pass.
        weight: As in the forward pass.
        buff: Buffer for the derivatives by the logarithm of the target's probability,
            ``(rows,)``.
        grad_input: Buffer, ``(rows, classes)``.
        gamma: The focusing exponent.
        alpha: The factor of all losses.
    """
    column, is_object = _columns(target, input.size(1))
    p = at_least_float32(input.gather(1, column))
    # The bound keeps gamma < 1 finite where the target's probability is 1.
    q = (1 - p).clamp_(min=TINY)
    slopes = alpha * (
        gamma * q.pow(gamma - 1) * p * p.clamp(min=TINY).log_() - q**gamma
    )
    slopes.masked_fill_(~is_object, 0)
    slopes = _weigh(slopes, weight, column, is_object)
    buff.copy_(slopes.squeeze(1))
    grad_input.copy_((-slopes * input).scatter_add_(1, column, slopes))


def _negative_loss(logits: Tensor, gamma: float) -> Tensor:
    """Return the loss of negative entries without their alpha.

    The loss of a positive entry is that of a negative one with the opposite logit.
    """
    return logits.sigmoid().pow_(gamma).mul_(_softplus(logits))


def _negative_slope(logits: Tensor, gamma: float) -> Tensor:
    """Return the derivative of :func:`_negative_loss` by the logits."""
    p = logits.sigmoid()
    slope = p.add(_softplus(logits).mul_(1 - p), alpha=gamma)
    return slope.mul_(p.pow_(gamma))


def _softplus(logits: Tensor) -> Tensor:
    # Beyond 50 the logarithm equals its argument in float64 too; the default of 20
    # is right in float32 only.
    return F.softplus(logits, threshold=50)


def _columns(target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return valid column indices and which rows have a class, ``(rows, 1)``."""
    target = target[:, None]
    column = target.clamp(0, classes - 1)
    return column, column == target


def _replace(dense: Tensor, column: Tensor, where: Tensor, values: Tensor) -> None:
    """Put one value into the given column of every row where the condition holds."""
    dense.scatter_(1, column, torch.where(where, values, dense.gather(1, column)))


def _weigh(values: Tensor, weight: Tensor, column: Tensor, is_object: Tensor) -> Tensor:
    """Multiply rows by the weights of their classes, in place."""
    if weight.numel() == 0:
        return values
    return values.mul_(torch.where(is_object, weight.to(values)[column], 1))
