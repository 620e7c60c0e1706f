"""Attention cores and inputs for their tests."""

import torch
from torch import Tensor

from ravlt.models.attention import CORES, AttentionCore

GRIDS = [(7, 9), (1, 5), (6, 1), (1, 1)]
HEADS, HEAD_DIM = 2, 8


def draw(hw: tuple[int, int], heads: int = HEADS, d: int = HEAD_DIM) -> list[Tensor]:
    torch.manual_seed(hw[0] * 100 + hw[1])
    return [
        torch.randn(2, heads, hw[0] * hw[1], d, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    ]


def draw_input(core: AttentionCore, hw: tuple[int, int]) -> list[Tensor]:
    """Return a core's arguments after hw: the layer's input x, or none."""
    if not core.needs_input:
        return []
    torch.manual_seed(1)
    return [torch.randn(2, *hw, core.dim, dtype=torch.float64).requires_grad_()]


def gain_of(core: AttentionCore) -> Tensor | float:
    """Return the factor between ``dense @ v`` and the output."""
    return getattr(core, "gain", 1.0)


def build_shaken(name: str, **kwargs) -> AttentionCore:
    """Build a core in float64 with random parameters and statistics."""
    core = CORES[name](HEADS * HEAD_DIM, HEADS, **kwargs).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in core.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.3 * noise
    for statistic in core.buffers():
        if statistic.is_floating_point():
            statistic.uniform_(0.5, 2, generator=generator)
    return core
