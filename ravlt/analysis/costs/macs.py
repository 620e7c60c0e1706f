"""Multiply-adds of a forward pass, counted from the operations that run."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

# Products of two activations; convolutions and products with weights are the rest.
_ATTENTION = ("bmm", "baddbmm", "scaled_dot_product")


def count_macs(forward: Callable[[], object]) -> tuple[int, int]:
    """Counts the multiply-adds of a call.

    Args:
        forward: Runs the model once. On the meta device nothing is computed, and fused
            softmax attention is counted by its definition.

    Returns:
        Without the products between activations (attention), as papers count, and with
        everything.
    """
    return count_macs_by_module(forward)["Global"]


def count_macs_by_module(forward: Callable[[], object]) -> dict[str, tuple[int, int]]:
    """Counts the multiply-adds of a call, and of every module inside.

    Gradients are enabled meanwhile, so that RAVLT computes whole grids: its tiles
    compute their halos twice.

    Args:
        forward: As in :func:`count_macs`.

    Returns:
        Pairs as in :func:`count_macs` by the name of the module, from the class of the
        outermost one on; 'Global' is everything.
    """
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        forward()
    return {name: _macs(ops) for name, ops in counter.get_flop_counts().items()}


def _macs(flops: dict) -> tuple[int, int]:
    counts = {str(op): count // 2 for op, count in flops.items()}
    attention = sum(n for op, n in counts.items() if any(a in op for a in _ATTENTION))
    total = sum(counts.values())
    return total - attention, total
