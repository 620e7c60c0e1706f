"""Which stages of RAVLT stand in for the maps of another backbone."""

from collections.abc import Sequence

from ravlt.errors import RAVLTError

from .levels import Level

STRIDES = (4, 8, 16, 32)


def match_stages(old: Sequence[Level], name: str) -> tuple[int, ...]:
    """Finds a stage for each level: of the same stride, or as deep if dilated.

    Args:
        old: What the old backbone gives.
        name: Its type, for messages.

    Returns:
        Stages of RAVLT, rising.

    Raises:
        RAVLTError: If the maps are no pyramid that RAVLT can stand in for.
    """
    strides = [level.stride for level in old]
    if len(old) > 1 and len(set(strides)) == 1:
        raise RAVLTError(
            f"The backbone {name} gives {len(old)} maps of one stride ({strides[0]}), "
            f"as plain vision transformers, hourglasses and networks of parallel "
            f"branches do, and its neck or heads are made for that; choose a config of "
            f"the same task with a pyramid, such as one on ResNet or Swin."
        )
    rising = all(
        a.stride <= b.stride and a.channels <= b.channels
        for a, b in zip(old, old[1:], strict=False)
    )
    if not rising or len(old) > len(STRIDES):
        raise RAVLTError(
            f"The backbone {name} gives maps of strides {strides} and channels "
            f"{[level.channels for level in old]}, which is no pyramid from fine to "
            f"deep: it decodes or joins branches itself; choose a config whose "
            f"decoding is in its heads."
        )
    if set(strides) <= set(STRIDES) and len(set(strides)) == len(old):
        return tuple(STRIDES.index(stride) for stride in strides)
    if strides[0] < STRIDES[0] or strides[-1] > STRIDES[-1] or len(old) == 1:
        raise RAVLTError(
            f"The backbone {name} gives strides {strides}, and RAVLT has "
            f"{list(STRIDES)}; choose a config whose neck or heads take some of these."
        )
    return tuple(range(len(STRIDES) - len(old), len(STRIDES)))


def stride_warnings(
    old: Sequence[Level], stages: Sequence[int], name: str
) -> list[str]:
    """Says where the swap changes the grid that a neck or head sees."""
    strides = [level.stride for level in old]
    new = [STRIDES[i] for i in stages]
    if strides != new:
        return [
            f"{name} gave strides {strides}, RAVLT gives {new}: heads see a coarser "
            f"grid than they were made for; check dilations in the heads, and the crop "
            f"size."
        ]
    if new[-1] < STRIDES[-1]:
        return [
            f"{name} gave no stride above {new[-1]}: RAVLT's later stages are not "
            f"built; a config with a pyramid would use them."
        ]
    return []
