"""The sizes of RAVLT: width, depth, heads and regularisation of each variant."""

import logging
from collections.abc import Mapping, Sequence

from mmengine.logging import print_log

from ravlt.errors import RAVLTError

NUM_STAGES = 4
# An attention is a name, or a dict with options; one, or one a stage, or one a block.
AttnType = str | Mapping
AttnTypes = AttnType | Sequence[AttnType | Sequence[AttnType]]

# The attention of the released weights, stage by stage.
RELEASED_ATTN_TYPES = ("rala", "rala", "softmax", "softmax")

# The released variants (paper, Table 1; drop path and layer scale as released), and
# a test-sized one that runs in milliseconds.
ARCHS = {
    "t": dict(
        embed_dims=(64, 128, 256, 512),
        depths=(2, 2, 6, 2),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.1,
        layer_scale_init=(1.0, 1.0, 1.0, 1.0),
    ),
    "s": dict(
        embed_dims=(64, 128, 320, 512),
        depths=(3, 5, 9, 3),
        num_heads=(1, 2, 5, 8),
        drop_path_rate=0.15,
        layer_scale_init=(1.0, 1.0, 1.0, 1.0),
    ),
    "b": dict(
        embed_dims=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        num_heads=(1, 2, 6, 8),
        drop_path_rate=0.4,
        layer_scale_init=(1.0, 1.0, 1e-6, 1e-6),
    ),
    "l": dict(
        embed_dims=(96, 192, 448, 640),
        depths=(4, 7, 19, 8),
        num_heads=(1, 2, 7, 10),
        drop_path_rate=0.55,
        layer_scale_init=(1e-6, 1e-6, 1e-6, 1e-6),
    ),
    "test": dict(
        embed_dims=(16, 32, 48, 64),
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 3, 4),
        drop_path_rate=0.0,
        layer_scale_init=(1.0, 1.0, 1.0, 1.0),
    ),
}
MLP_RATIO = 3.5

_REQUIRED = {"embed_dims", "depths", "num_heads"}
_DEFAULTS = dict(
    mlp_ratio=MLP_RATIO, drop_path_rate=0.0, layer_scale_init=(1.0,) * NUM_STAGES
)


def resolve_arch(arch: str | Mapping) -> dict:
    """Gives the settings of a named or hand-made architecture, checked.

    Args:
        arch: One of ``'t'``, ``'s'``, ``'b'``, ``'l'``, ``'test'``, or a mapping
            with ``embed_dims``, ``depths`` and ``num_heads`` (four numbers each) and
            optionally ``mlp_ratio``, ``drop_path_rate`` and ``layer_scale_init``.

    Returns:
        A new dict with all six settings.

    Raises:
        RAVLTError: If the name is unknown, a key is missing or unknown, a list does
            not have four entries, or heads do not fit the channels.
    """
    if isinstance(arch, str):
        if arch.lower() not in ARCHS:
            raise RAVLTError(
                f"arch='{arch}' is unknown; use one of {sorted(ARCHS)} or a dict with "
                f"{sorted(_REQUIRED)}."
            )
        settings = ARCHS[arch.lower()]
    elif isinstance(arch, Mapping):
        settings = arch
    else:
        raise RAVLTError(
            f"arch must be a name or a dict, not {type(arch).__name__}; use one of "
            f"{sorted(ARCHS)} or a dict with {sorted(_REQUIRED)}."
        )
    missing = _REQUIRED - settings.keys()
    unknown = settings.keys() - _REQUIRED - _DEFAULTS.keys()
    if missing or unknown:
        raise RAVLTError(
            f"arch lacks {sorted(missing)} and has the unknown keys {sorted(unknown)}; "
            f"give {sorted(_REQUIRED)} and, if wanted, {sorted(_DEFAULTS)}."
        )
    settings = {**_DEFAULTS, **settings}
    for key in (*sorted(_REQUIRED), "layer_scale_init"):
        settings[key] = per_stage(key, settings[key])
    for i, (dim, heads) in enumerate(
        zip(settings["embed_dims"], settings["num_heads"], strict=True)
    ):
        _check_heads(i, dim, heads)
    return settings


def per_stage(key: str, values) -> tuple:
    """Gives one value for each of the four stages; a single one stands for all.

    Raises:
        RAVLTError: If a list does not have four entries.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        return (values,) * NUM_STAGES
    if len(values) != NUM_STAGES:
        raise RAVLTError(
            f"{key}={tuple(values)} has {len(values)} entries, but RAVLT has "
            f"{NUM_STAGES} stages; give {NUM_STAGES}."
        )
    return tuple(values)


def per_block(key: str, values: Sequence, depths: Sequence[int]) -> tuple[tuple, ...]:
    """Gives one value for each block of each stage.

    Args:
        key: Name for messages.
        values: Of each stage, one (no list) for all of its blocks, or one for each.
        depths: Blocks of each stage.

    Raises:
        RAVLTError: If a stage's list does not have as many entries as blocks.
    """
    blocks = []
    for stage, (value, depth) in enumerate(zip(values, depths, strict=True)):
        one = isinstance(value, str | Mapping)
        value = (value,) * depth if one else tuple(value)
        if len(value) != depth:
            raise RAVLTError(
                f"{key}[{stage}] has {len(value)} entries, but the stage has {depth} "
                f"blocks; give one attention, or {depth}."
            )
        blocks.append(value)
    return tuple(blocks)


def warn_attn_types(saved: tuple[str, ...], used: tuple[str, ...]) -> None:
    """Log a warning if weights were trained with another attention than the model's.

    All mechanisms share the released parameters, so the weights load without an error.

    Args:
        saved: Attention types that the weights were trained with.
        used: Attention types of the model.
    """
    if tuple(saved) != tuple(used):
        print_log(
            f"The checkpoint was trained with attn_types={tuple(saved)}, but this "
            f"model uses {tuple(used)}: expect other outputs until fine-tuned.",
            logger="current",
            level=logging.WARNING,
        )


def _check_heads(stage: int, dim: int, heads: int) -> None:
    if dim % heads:
        raise RAVLTError(
            f"embed_dims[{stage}]={dim} is not divisible by num_heads[{stage}]="
            f"{heads}; change one of them."
        )
    # Rows and columns take half of a head each, and rotations act on pairs.
    if (dim // heads) % 4:
        raise RAVLTError(
            f"embed_dims[{stage}]={dim} over num_heads[{stage}]={heads} gives a head "
            f"dimension of {dim // heads}, which the 2-D rotary embedding needs to be "
            f"a multiple of 4; change one of them."
        )
