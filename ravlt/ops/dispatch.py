"""The conditions under which operators may leave their plain form."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

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

    Subclasses (fake and distributed tensors) and ``torch.fx`` proxies do not count, nor
    does anything while forward-mode derivatives are computed.
    """
    plain = _plain_only or type(x) not in _PLAIN_TENSORS
    if plain or is_tracing_or_compiling():
        return False
    return forward_ad._current_level < 0


def may_call_custom_operators(x: Tensor) -> bool:
    """True if ``x`` may go to an operator of ``torch.library``: eager, or compiling.

    ``torch.jit.trace`` records plain PyTorch, which runs without Python. Functional
    transforms (``torch.func``) and forward-mode derivatives need plain PyTorch, and so
    do subclasses such as distributed tensors.
    """
    if _plain_only or torch.jit.is_tracing():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    if torch.compiler.is_compiling():
        return type(x) in (*_PLAIN_TENSORS, FakeTensor)
    return is_eager(x)


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
