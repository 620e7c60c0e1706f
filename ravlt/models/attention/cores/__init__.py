"""The mechanisms by name: (q, k, v, hw) to an output, each with its dense form."""

from ravlt.errors import RAVLTError

from .base import AttentionCore
from .chela import CHELACore
from .cosformer import CosFormerCore
from .diag import DiagCore
from .fixation import FixationCore
from .focused import FocusedCore
from .gla import GLACore
from .hedgehog import HedgehogCore
from .linear import LinearCore
from .norm import NormCore
from .rala import RALACore
from .softmax import SoftmaxCore
from .vicinity import VicinityCore

CORES = {
    "rala": RALACore,
    "softmax": SoftmaxCore,
    "linear": LinearCore,
    "focused": FocusedCore,
    "cosformer": CosFormerCore,
    "vicinity": VicinityCore,
    "norm": NormCore,
    "diag": DiagCore,
    "fixation": FixationCore,
    "hedgehog": HedgehogCore,
    "gla": GLACore,
    "chela": CHELACore,
}

__all__ = ["CORES", "AttentionCore", "build_core"]


def build_core(name: str, dim: int, num_heads: int) -> AttentionCore:
    """Builds an attention core.

    Args:
        name: A key of :data:`CORES`.
        dim: Channels over all heads, C.
        num_heads: Number of heads; C / heads must be a multiple of 4.

    Returns:
        A module called as ``core(q, k, v, hw)`` with q, k, v of shape
        (B, heads, H * W, C / heads), or ``core(q, k, v, hw, x)`` if it needs the input.

    Raises:
        RAVLTError: If the name is unknown.
    """
    if name not in CORES:
        raise RAVLTError(
            f"attn_types names the unknown attention '{name}'; use {sorted(CORES)}."
        )
    return CORES[name](dim, num_heads)
