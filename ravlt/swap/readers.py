"""Who reads a backbone's maps, and the channels they expect."""

from collections.abc import Iterator, Mapping, Sequence

from ravlt.config import type_name
from ravlt.errors import RAVLTError

from .changes import Change, Path, dotted
from .levels import Level, ask_reader
from .sites import Site

# Parts of a model that read no maps.
_OTHER = ("backbone", "neck", "data_preprocessor", "train_cfg", "test_cfg", "init_cfg")
_WHY = "RAVLT's channels"


# Necks that look up levels by their position in the backbone's output, and leave some.
_BY_POSITION = ("NASFCOS_FPN",)


def leaves_levels(site: Site) -> bool:
    """True if a neck needs all levels of the backbone, but does not read all of them.

    Args:
        site: The model that holds the backbone.
    """
    names = (type_name(neck) for neck, _ in site.necks())
    return any(name in _BY_POSITION for name in names)


def used_levels(site: Site, count: int) -> list[int]:
    """Return the levels that the rest of the model needs.

    RAVLT does not make the others: a norm without a gradient would stop DDP.

    Args:
        site: The model that holds the backbone.
        count: How many levels the old backbone gives.

    Returns:
        Their positions, in order.
    """
    necks = list(site.necks())
    if leaves_levels(site):
        return list(range(count))
    if necks:
        first, _ = necks[0]
        one = isinstance(first.get("in_channels"), int)
        return list(range(count - 1 if one else first.get("start_level", 0), count))
    heads = list(segmentation_heads(site))
    read = {i for head, _ in heads for i in _positions(head, count)}
    return sorted(read) or list(range(count))


def rewire(
    site: Site, scope: str, old: Sequence[Level], used: list[int], new: Sequence[Level]
) -> Iterator[Change]:
    """Makes whatever reads the backbone expect the new maps.

    Args:
        site: The model that holds the backbone.
        scope: 'mmdet' or 'mmseg'.
        old: What the old backbone gave.
        used: Positions of the levels that the new one gives, too.
        new: What the new one gives.

    Yields:
        A change for each number.

    Raises:
        RAVLTError: If a neck expects other maps than the old backbone gave.
    """
    for neck, path in site.necks():
        if "in_channels" not in neck:  # it pools maps of any width
            continue
        changes = list(_neck_changes(neck, path, old, used, new))
        yield from changes
        old_outs = ask_reader(neck, scope, old)
        merged = dict(neck) | {c.path[-1]: c.value for c in changes}
        new_outs = ask_reader(merged, scope, new)
        if old_outs == new_outs:
            return
        old, new, used = old_outs, new_outs, list(range(len(old_outs)))
    old_channels = [level.channels for level in old]
    # The last of the new levels stands in for those that nothing reads.
    by_position = [
        new[used.index(i)].channels if i in used else new[-1].channels
        for i in range(len(old))
    ]
    _refuse_split_cascade(site, old, new, used)
    heads = list(segmentation_heads(site))
    for head, path in heads:
        yield from _head_changes(head, path, old_channels, used, by_position)
    if not heads:
        for key, value in site.owner.items():
            if key not in _OTHER:
                path = (*site.path, key)
                yield from _tree_changes(value, path, old_channels, by_position)


def _neck_changes(
    neck: Mapping,
    path: Path,
    old: Sequence[Level],
    used: list[int],
    new: Sequence[Level],
) -> Iterator[Change]:
    found = neck["in_channels"]
    old_channels, new_channels = ([x.channels for x in xs] for xs in (old, new))
    if isinstance(found, int):
        if found != old_channels[-1]:
            raise _mismatch(neck, path, old_channels)
        yield Change((*path, "in_channels"), new_channels[-1], _WHY)
        return  # it reads the last level
    if list(found) == old_channels[::-1] != old_channels:  # deepest first
        new_channels.reverse()
    elif list(found) != old_channels:
        raise _mismatch(neck, path, old_channels)
    yield Change((*path, "in_channels"), type(found)(new_channels), _WHY)
    outs = neck.get("out_channels")
    if isinstance(outs, list | tuple) and outs[: len(found)] == found:
        # It hands its input on (SSDNeck).
        value = type(outs)([*new_channels, *outs[len(found) :]])
        yield Change((*path, "out_channels"), value, _WHY)
    if len(used) < len(old):
        why = "RAVLT gives only the levels that are used"
        yield Change((*path, "start_level"), 0, why)
        if neck.get("end_level", -1) not in (-1, None):
            yield Change((*path, "end_level"), neck["end_level"] - used[0], why)


def _mismatch(neck: Mapping, path: Path, channels: list[int]) -> RAVLTError:
    return RAVLTError(
        f"{dotted(path)}.in_channels={neck['in_channels']} does not fit what the old "
        f"backbone gives, {channels}; correct the config first."
    )


def segmentation_heads(site: Site) -> Iterator[tuple[Mapping, Path]]:
    """Heads of mmseg, and heads inside of them, that choose their levels."""
    for key in ("decode_head", "auxiliary_head"):
        yield from _with_index(site.owner.get(key), (*site.path, key), True)


def _with_index(node, path: Path, top: bool = False) -> Iterator[tuple[Mapping, Path]]:
    if isinstance(node, Mapping):
        if "in_index" in node or (top and "in_channels" in node):
            yield node, path
        for key, value in node.items():
            yield from _with_index(value, (*path, key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _with_index(value, (*path, i), top)


def _refuse_split_cascade(
    site: Site, old: Sequence[Level], new: Sequence[Level], used: list[int]
) -> None:
    """Refuses heads that refine each other on one grid, which RAVLT would part."""
    cascade = site.owner.get("decode_head")
    if not isinstance(cascade, list | tuple):
        return
    read = {i for head in cascade for i in _named(head, len(old))}
    strides = {new[used.index(i)].stride for i in read}
    if len({old[i].stride for i in read}) == 1 < len(strides):
        raise RAVLTError(
            f"{dotted(site.path)}.decode_head is a cascade on one grid of the old, "
            f"dilated backbone, and RAVLT gives its levels at strides "
            f"{sorted(strides)}; choose the same method on HRNet."
        )


def _named(head: Mapping, count: int) -> list[int]:
    """The levels that a head of mmseg names; without an index, the last one or all."""
    default = -1 if isinstance(head.get("in_channels"), int) else range(count)
    index = head.get("in_index", default)
    return [i % count for i in ([index] if isinstance(index, int) else index)]


def _taken(head: Mapping, named: list[int]) -> list[int]:
    """Those that it makes something of."""
    without_laterals = head.get("add_lateral") is False  # EncNet
    return named[-1:] if without_laterals else named


def _positions(head: Mapping, count: int) -> list[int]:
    # DeepLabV3+ reads the first level besides.
    first = [0] if head.get("c1_in_channels") else []
    return first + _taken(head, _named(head, count))


def _head_changes(
    head: Mapping, path: Path, old: list[int], used: list[int], new: list[int]
) -> Iterator[Change]:
    found, index = head["in_channels"], head.get("in_index")
    if head.get("c1_in_channels"):
        yield Change((*path, "c1_in_channels"), new[0], _WHY)
    named = _named(head, len(old))
    # A head may go on naming levels that it does not use, as long as all are there.
    taken = named if len(used) == len(old) else _taken(head, named)
    if isinstance(found, int):
        (position,) = taken
        if found == old[position] != new[position]:
            yield Change((*path, "in_channels"), new[position], _WHY)
            if head.get("num_convs") == 0:  # nothing changes the width in between
                yield Change((*path, "channels"), new[position], _WHY)
    elif list(found) == [old[i] for i in named]:
        value = type(found)(new[i] for i in taken)
        yield Change((*path, "in_channels"), value, _WHY)
    if index is None or len(used) == len(old):
        return
    shifted = [used.index(i) for i in taken]
    wanted = shifted[0] if isinstance(index, int) else type(index)(shifted)
    if wanted != index:
        why = "RAVLT gives only the levels that are used"
        yield Change((*path, "in_index"), wanted, why)


def _tree_changes(node, path: Path, old: list[int], new: list[int]) -> Iterator[Change]:
    """Heads of mmdet without a neck: whatever is as wide as the backbone."""
    if isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _tree_changes(value, (*path, i), old, new)
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        # Extractors of regions hand on what they are given.
        passed = key == "out_channels" and str(path[-1]).endswith("roi_extractor")
        if key == "in_channels" or passed:
            wanted = None
            if value == old[-1]:
                wanted = new[-1]
            elif isinstance(value, list | tuple) and list(value) == old:
                wanted = type(value)(new)
            if wanted is not None and wanted != value:
                yield Change((*path, key), wanted, _WHY)
        else:
            yield from _tree_changes(value, (*path, key), old, new)
