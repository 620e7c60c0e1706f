"""The attention mechanisms by name: cores, and the layers of their own papers."""

import inspect
from collections.abc import Mapping

from torch import nn

from ravlt.errors import RAVLTError

from .base import AttentionCore, PlainAttention, join_heads, split_heads
from .chela import CHELAAttention, CHELACore
from .cosformer import CosFormerCore
from .diag import DiagCore
from .features import FeatureMapCore
from .fixation import FixationCore
from .focused import FocusedAttention, FocusedCore
from .gla import GLAAttention, GLACore, NarrowGLACore
from .hedgehog import HedgehogCore
from .linear import LinearCore
from .norm import NormCore
from .rala import RALACore
from .softmax import SoftmaxCore
from .vicinity import VicinityAttention, VicinityCore

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
# Where a paper's own layer differs from PlainAttention around the mechanism's core.
_PAPER_LAYERS = {
    "focused": FocusedAttention,
    "vicinity": VicinityAttention,
    "gla": GLAAttention,
    "chela": CHELAAttention,
}
_PAPER_CORES = {"gla": NarrowGLACore, "chela": NormCore}
_PAPER_OPTIONS = {"softmax": dict(rope=False), "fixation": dict(shift=True)}

__all__ = [
    "CORES",
    "AttentionCore",
    "FeatureMapCore",
    "FocusedAttention",
    "GLAAttention",
    "LinearCore",
    "PlainAttention",
    "RALACore",
    "VicinityAttention",
    "build_core",
    "build_paper_attention",
    "join_heads",
    "split_heads",
]


def build_core(
    core: str | Mapping, dim: int, num_heads: int, norm_cfg: Mapping | None = None
) -> AttentionCore:
    """Build an attention core.

    Args:
        core: A key of :data:`CORES`, or a dict with that (``type``) and options, as in
            ``dict(type='cosformer', layout='raster')``.
        dim: Channels over all heads, C.
        num_heads: Number of heads; C / heads must be a multiple of 4.
        norm_cfg: Batch norm for mechanisms that have one; None is their default.

    Returns:
        A module called as ``core(q, k, v, hw)`` with q, k, v of shape
        (B, heads, H * W, C / heads), or ``core(q, k, v, hw, x)`` if it needs the input.

    Raises:
        RAVLTError: If the name or an option is unknown.
    """
    name, options = _split(core)
    return _construct(CORES[name], (dim, num_heads), options, norm_cfg)


def build_paper_attention(
    core: str | Mapping, dim: int, num_heads: int, norm_cfg: Mapping | None = None
) -> nn.Module:
    """Build a mechanism with the auxiliaries of its own paper.

    Args:
        core: As in :func:`build_core`, for any mechanism but RALA.
        dim: Channels, C.
        num_heads: Number of heads.
        norm_cfg: As in :func:`build_core`.

    Returns:
        A module that maps tokens (B, H, W, C) to the same shape.

    Raises:
        RAVLTError: If the name or an option is unknown.
    """
    name, options = _split(core)
    width = dim // 2 if name == "vicinity" else dim
    options = {**_PAPER_OPTIONS.get(name, {}), **options}
    cls = _PAPER_CORES.get(name, CORES[name])
    mechanism = _construct(cls, (width, num_heads), options, norm_cfg)
    layer = _PAPER_LAYERS.get(name, PlainAttention)
    return _construct(layer, (dim, num_heads, mechanism), {}, norm_cfg)


def __getattr__(name: str):
    """Return the gated layer by its import path of ravlt 0.1."""
    if name != "Attention":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from ..ravlt import GatedAttention

    return GatedAttention


def _split(core: str | Mapping) -> tuple[str, dict]:
    """Split an attention type into its name, checked, and its options."""
    options = dict(type=core) if isinstance(core, str) else dict(core)
    name = options.pop("type", None)
    if name not in CORES:
        raise RAVLTError(
            f"attn_types names the unknown attention '{name}'; use {sorted(CORES)}."
        )
    return name, options


def _construct(
    cls: type[nn.Module], args: tuple, options: Mapping, norm_cfg: Mapping | None
) -> nn.Module:
    """Call a class with its arguments, the options, and norm_cfg if it has one."""
    parameters = [*inspect.signature(cls).parameters]
    known = [name for name in parameters[len(args) :] if name != "norm_cfg"]
    unknown = options.keys() - set(known)
    if unknown:
        raise RAVLTError(
            f"attn_types gives {cls.__name__} the unknown options {sorted(unknown)}; "
            f"it has {known}."
        )
    if norm_cfg is not None and "norm_cfg" in parameters:
        options = {**options, "norm_cfg": norm_cfg}
    return cls(*args, **options)
