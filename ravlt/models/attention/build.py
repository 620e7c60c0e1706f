"""The attention of a block from what a config says of it."""

from collections.abc import Mapping

from torch import nn

from ravlt.errors import RAVLTError

from .cores import CORES
from .paper import build_paper_attention
from .shell import Attention

PROFILES = ("shell", "paper")


def build_attention(spec: str | Mapping, dim: int, num_heads: int) -> nn.Module:
    """Builds the attention of a block, (B, H, W, C) -> (B, H, W, C).

    Args:
        spec: A key of :data:`CORES`, or a dict with that (``type``), options of the
            core, and ``profile``: ``'shell'`` (default) puts the core into RALA's
            shell, so that mechanisms compare; ``'paper'`` gives it the auxiliaries of
            its own paper in place of local term and gate.
        dim: Channels, C.
        num_heads: Number of heads.

    Raises:
        RAVLTError: If the name, the profile or an option is unknown.
    """
    options = dict(type=spec) if isinstance(spec, str) else dict(spec)
    profile = options.pop("profile", PROFILES[0])
    if profile not in PROFILES:
        raise RAVLTError(
            f"attn_types has the unknown profile='{profile}'; use one of {PROFILES}."
        )
    name = options.get("type")
    if profile == "shell" or name == "rala" or name not in CORES:
        return Attention(dim, num_heads, options)
    del options["type"]
    return build_paper_attention(name, dim, num_heads, options)


def plain_spec(spec: str | Mapping) -> str | dict:
    """The shortest form of a spec, of plain strings and dicts."""
    if isinstance(spec, Mapping):
        spec = dict(spec)
        return spec["type"] if spec.keys() == {"type"} else spec
    return spec
