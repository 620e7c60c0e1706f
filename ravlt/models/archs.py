"""The sizes of RAVLT: width, depth, heads and regularisation of each variant."""

import logging
from collections.abc import Mapping, Sequence

from mmengine.logging import print_log

from ravlt.errors import RAVLTError

NUM_STAGES = 4
# An attention type is a name, or a dict with options. attn_types gives one for all
# stages, one for each stage, or one for each block.
AttnType = str | Mapping
AttnTypes = AttnType | Sequence[AttnType | Sequence[AttnType]]

# The attention types of the released weights, one for each stage.
RELEASED_ATTN_TYPES = ("rala", "rala", "softmax", "softmax")

# The released variants (paper, Table 1; drop path and layer scale as released), and a
# small variant for tests, which runs in milliseconds.
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
# 'shell' is the name of 'gated' in configs and checkpoints of ravlt 0.1.
PROFILES = ("gated", "paper", "shell")

_REQUIRED = {"embed_dims", "depths", "num_heads"}
_DEFAULTS = dict(
    mlp_ratio=MLP_RATIO, drop_path_rate=0.0, layer_scale_init=(1.0,) * NUM_STAGES
)


def resolve_arch(arch: str | Mapping) -> dict:
    """Check and return the settings of a named or custom architecture.

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
    """Return one value for each of the four stages; a single value applies to all.

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


def resolve_attn_types(
    attn_types: AttnTypes, depths: Sequence[int]
) -> tuple[tuple, tuple[tuple, ...]]:
    """Check the attention types and give each block its own.

    Args:
        attn_types: One attention type for all stages, or one entry for each stage. An
            entry is an attention type, or a list with one for each block of the stage.
        depths: Number of blocks of each stage.

    Returns:
        The shortest form, which is stored with weights (if all blocks of a stage share
        one attention type, it is stored once), and the attention type of each block of
        each stage.

    Raises:
        RAVLTError: If the number of entries differs from that of stages or blocks.
    """
    stages = []
    stored = per_stage("attn_types", attn_types)
    for stage, (value, depth) in enumerate(zip(stored, depths, strict=True)):
        one = isinstance(value, str | Mapping)
        blocks = (value,) * depth if one else tuple(value)
        if len(blocks) != depth:
            raise RAVLTError(
                f"attn_types[{stage}] has {len(blocks)} entries, but the stage has "
                f"{depth} blocks; give one attention, or {depth}."
            )
        stages.append(tuple(_shortest(block) for block in blocks))
    short = tuple(
        blocks[0] if all(block == blocks[0] for block in blocks) else blocks
        for blocks in stages
    )
    return short, tuple(stages)


def split_profile(spec: AttnType) -> tuple[str, AttnType]:
    """Split the profile off an attention type.

    Args:
        spec: A name, or a dict with ``type``, options and ``profile``.

    Returns:
        ``'gated'`` or ``'paper'``, and the attention type without its profile. RALA
        always has the profile ``'gated'``: the gated layer is that of its own paper.

    Raises:
        RAVLTError: If the profile is unknown.
    """
    if isinstance(spec, str):
        return "gated", spec
    core = dict(spec)
    profile = core.pop("profile", "gated")
    if profile not in PROFILES:
        raise RAVLTError(
            f"attn_types has the unknown profile='{profile}'; use 'gated' or 'paper'."
        )
    paper = profile == "paper" and core.get("type") != "rala"
    return "paper" if paper else "gated", core


def check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Check the output indices and return them as a tuple.

    Raises:
        RAVLTError: If they are empty, not distinct or not sorted, or if one names no
            stage.
    """
    indices = tuple(out_indices)
    if not indices or sorted(set(indices)) != list(indices):
        raise RAVLTError(f"out_indices={indices} must be distinct and rise; sort them.")
    if indices[0] < 0 or indices[-1] >= NUM_STAGES:
        raise RAVLTError(
            f"out_indices={indices} names a stage that does not exist; use 0 to "
            f"{NUM_STAGES - 1}."
        )
    return indices


def check_frozen_stages(frozen_stages: int) -> int:
    """Check and return the number of frozen stages.

    Raises:
        RAVLTError: If it is out of range.
    """
    if not -1 <= frozen_stages <= NUM_STAGES:
        raise RAVLTError(
            f"frozen_stages={frozen_stages} is out of range; use -1 (none), 0 (stem) "
            f"or 1 to {NUM_STAGES}."
        )
    return frozen_stages


def check_tile(tile: int | None) -> int | None:
    """Check and return the side of a tile.

    Raises:
        RAVLTError: If it is negative.
    """
    if tile is not None and tile < 0:
        raise RAVLTError(f"tile={tile} is negative; use None, 0 or a number of tokens.")
    return tile


def warn_attn_types(saved: tuple[str, ...], used: tuple[str, ...]) -> None:
    """Log a warning if weights were trained with another attention than the model's.

    All mechanisms share the released parameters, so the weights load without an error.

    Args:
        saved: Attention types that the weights were trained with.
        used: Attention types of the model.
    """
    if _shortest_forms(saved) != _shortest_forms(used):
        print_log(
            f"The checkpoint was trained with attn_types={tuple(saved)}, but this "
            f"model uses {tuple(used)}: expect other outputs until fine-tuned.",
            logger="current",
            level=logging.WARNING,
        )


def _shortest_forms(stages: Sequence[AttnType | Sequence[AttnType]]) -> list:
    """Return each attention type in its shortest form, so that they compare."""
    return [
        _shortest(stage) if isinstance(stage, str | Mapping) else _shortest_forms(stage)
        for stage in stages
    ]


def _shortest(spec: AttnType) -> AttnType:
    """Return an attention type as plain strings and dicts, without defaults."""
    if isinstance(spec, str):
        return spec
    spec = dict(spec)
    if spec.get("profile") in ("gated", "shell"):
        del spec["profile"]
    return spec["type"] if spec.keys() == {"type"} else spec


def _check_heads(stage: int, dim: int, heads: int) -> None:
    if dim % heads:
        raise RAVLTError(
            f"embed_dims[{stage}]={dim} is not divisible by num_heads[{stage}]="
            f"{heads}; change one of them."
        )
    # Rows and columns rotate one half of a head each, and a rotation acts on pairs.
    if (dim // heads) % 4:
        raise RAVLTError(
            f"embed_dims[{stage}]={dim} over num_heads[{stage}]={heads} gives a head "
            f"dimension of {dim // heads}, which the 2-D rotary embedding needs to be "
            f"a multiple of 4; change one of them."
        )
