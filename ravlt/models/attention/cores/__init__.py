"""The mechanisms by name: (q, k, v, hw) to an output, each with its dense form."""

import inspect
from collections.abc import Mapping

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

__all__ = ["CORES", "AttentionCore", "build_core", "construct"]


def build_core(core: str | Mapping, dim: int, num_heads: int) -> AttentionCore:
    """Builds an attention core.

    Args:
        core: A key of :data:`CORES`, or a dict with that (``type``) and options, as in
            ``dict(type='cosformer', layout='raster')``.
        dim: Channels over all heads, C.
        num_heads: Number of heads; C / heads must be a multiple of 4.

    Returns:
        A module called as ``core(q, k, v, hw)`` with q, k, v of shape
        (B, heads, H * W, C / heads), or ``core(q, k, v, hw, x)`` if it needs the input.

    Raises:
        RAVLTError: If the name or an option is unknown.
    """
    options = dict(type=core) if isinstance(core, str) else dict(core)
    name = options.pop("type", None)
    if name not in CORES:
        raise RAVLTError(
            f"attn_types names the unknown attention '{name}'; use {sorted(CORES)}."
        )
    return construct(CORES[name], dim, num_heads, options)


def construct(
    core: type[AttentionCore], dim: int, num_heads: int, options: Mapping
) -> AttentionCore:
    """Builds a core of a class.

    Raises:
        RAVLTError: If it has no such option.
    """
    known = [*inspect.signature(core).parameters][2:]
    unknown = options.keys() - set(known)
    if unknown:
        raise RAVLTError(
            f"attn_types gives {core.__name__} the unknown options {sorted(unknown)}; "
            f"it has {known}."
        )
    return core(dim, num_heads, **options)
