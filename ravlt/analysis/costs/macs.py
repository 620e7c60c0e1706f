"""Multiply-adds of a forward pass, counted from the operations that run."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

# Operators that multiply two activations. All others multiply by weights.
_ATTENTION = ("bmm", "baddbmm", "scaled_dot_product")


def count_macs(forward: Callable[[], object]) -> tuple[int, int]:
    """Count the multiply-adds of a call.

    Args:
        forward: Function that runs the model once. On the meta device nothing is
            computed, and fused softmax attention is counted by its definition.

    Returns:
        The count without products of activations (attention), as in papers, and the
        count of everything.
    """
    return count_macs_by_module(forward)["Global"]


def count_macs_by_module(forward: Callable[[], object]) -> dict[str, tuple[int, int]]:
    """Count the multiply-adds of a call and of every module that it runs.

    Gradients are enabled, because RAVLT then computes without tiles. Tiles overlap, and
    the multiply-adds of the overlap would count twice.

    Args:
        forward: As in :func:`count_macs`.

    Returns:
        Pairs as in :func:`count_macs` by the name of the module, which begins with the
        class of the outermost one. 'Global' is the total.
    """
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        forward()
    return {name: _macs(ops) for name, ops in counter.get_flop_counts().items()}


def _macs(flops: dict) -> tuple[int, int]:
    counts = {str(op): count // 2 for op, count in flops.items()}
    attention = sum(n for op, n in counts.items() if any(a in op for a in _ATTENTION))
    total = sum(counts.values())
    return total - attention, total
