"""The conditions under which operators may leave their plain form."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .precision import is_autocast_on_cpu

_PLAIN_TENSORS = (Tensor, nn.Parameter)
_plain_only = False


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Run every operator in its plain form, for comparisons and measurements."""
    global _plain_only
    before, _plain_only = _plain_only, True
    try:
        yield
    finally:
        _plain_only = before


def is_tracing_or_compiling() -> bool:
    """True while torch.compile, torch.export or torch.jit.trace records the model.

    Tracers unroll Python loops and cannot serialize Python autograd functions;
    compilers and exporters do not support complex tensors.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_eager(x: Tensor) -> bool:
    """True if ``x`` is a tensor with data and nothing records the operation.

    Then operators may save less for the backward pass, or work in place.

    Subclasses (fake and distributed tensors) and ``torch.fx`` proxies do not count.
    """
    plain = _plain_only or type(x) not in _PLAIN_TENSORS
    return not plain and not is_tracing_or_compiling()


def may_call_custom_operators(x: Tensor) -> bool:
    """True if ``x`` may go to an operator of ``torch.library``: eager, or compiling.

    ``torch.jit.trace`` records plain PyTorch, which runs without Python. Functional
    transforms (``torch.func``) differentiate plain PyTorch only.
    """
    if _plain_only or torch.jit.is_tracing():
        return False
    if torch.compiler.is_compiling():
        return True
    return type(x) in _PLAIN_TENSORS and not torch._C._are_functorch_transforms_active()


def is_eager_on_cpu(x: Tensor) -> bool:
    """True if an operator may take its CPU form."""
    return is_eager(x) and x.device.type == "cpu"


def is_full_precision_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """True if an eager CPU operator computes in float32 or float64 throughout."""
    return (
        is_eager_on_cpu(x)
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not is_autocast_on_cpu()
    )
