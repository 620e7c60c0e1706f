"""Multiply-adds of a forward pass, counted from the operations that run."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

# Products of two activations; convolutions and products with weights are the rest.
_ATTENTION = ("bmm", "baddbmm", "scaled_dot_product")


def count_macs(forward: Callable[[], object]) -> tuple[int, int]:
    """Counts the multiply-adds of a call.

    Gradients are enabled meanwhile, so that RAVLT computes whole grids: its tiles
    compute their halos twice.

    Args:
        forward: Runs the model once. On the meta device nothing is computed, and fused
            softmax attention is counted by its definition.

    Returns:
        Without the products between activations (attention), as papers count, and with
        everything.
    """
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        forward()
    counts = {str(op): n // 2 for op, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for op, n in counts.items() if any(a in op for a in _ATTENTION))
    total = sum(counts.values())
    return total - attention, total
