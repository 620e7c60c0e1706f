"""Activations that the backward pass computes again."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .dispatch import is_eager


def recompute(
    function: Callable[[Tensor], Tensor], x: Tensor, enabled: bool | None
) -> Tensor:
    """Call a function that draws no random numbers; backward may call it again.

    Args:
        function: What to compute.
        x: Its argument, the only tensor kept for the backward pass if recomputing.
        enabled: Whether to recompute; None recomputes on CPUs only. Without gradients,
            and while a compiler or tracer records the model, nothing is recomputed.

    Returns:
        ``function(x)``.
    """
    if not (torch.is_grad_enabled() and is_eager(x)):
        return function(x)
    if enabled is None:
        enabled = x.device.type == "cpu"
    if not enabled:
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def checkpoint_module(module: nn.Module, x: Tensor) -> Tensor:
    """Call a module; the backward pass calls it again instead of keeping activations.

    Running statistics of batch norms move once, in the first call.

    Args:
        module: What to compute.
        x: Its argument, the only tensor kept for the backward pass.

    Returns:
        ``module(x)``.
    """
    if not torch.is_grad_enabled():
        return module(x)
    options = {}
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    # Compilers do not support this context: under them statistics move twice.
    if norms and is_eager(x):
        options["context_fn"] = lambda: (
            contextlib.nullcontext(),
            _statistics_kept(norms),
        )
    return checkpoint(module, x, use_reentrant=False, **options)


@contextlib.contextmanager
def _statistics_kept(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
