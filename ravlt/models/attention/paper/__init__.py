"""Each mechanism as its paper has it: with its own auxiliaries, not RALA's shell."""

from collections.abc import Mapping

from ..cores import CORES, construct
from ..cores.norm import NormCore
from .base import PaperAttention
from .chela import CHELAAttention
from .focused import FocusedAttention
from .gla import GLAAttention, NarrowGLACore
from .plain import PlainAttention
from .vicinity import VicinityAttention

_LAYERS = {
    "focused": FocusedAttention,
    "vicinity": VicinityAttention,
    "gla": GLAAttention,
    "chela": CHELAAttention,
}
_CORES = CORES | {"gla": NarrowGLACore, "chela": NormCore}
# What a paper does otherwise than the core in the shell.
_OPTIONS = {"softmax": dict(rope=False), "fixation": dict(shift=True)}

__all__ = ["PaperAttention", "build_paper_attention"]


def build_paper_attention(
    name: str, dim: int, num_heads: int, options: Mapping
) -> PaperAttention:
    """Builds a mechanism with its paper's auxiliaries.

    Args:
        name: A key of :data:`CORES`, other than RALA's, whose layer is the shell.
        dim: Channels, C.
        num_heads: Number of heads.
        options: Of the core.

    Raises:
        RAVLTError: If an option is unknown.
    """
    width = dim // 2 if name == "vicinity" else dim
    options = {**_OPTIONS.get(name, {}), **options}
    core = construct(_CORES[name], width, num_heads, options)
    return _LAYERS.get(name, PlainAttention)(dim, num_heads, core)
