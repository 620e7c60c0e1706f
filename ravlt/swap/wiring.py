"""Who reads a backbone's maps, and the channels they expect."""

from collections.abc import Iterator, Mapping, Sequence

from .changes import Change, Path
from .levels import Level

# Parts of a model that read no maps.
_OTHER = ("backbone", "data_preprocessor", "train_cfg", "test_cfg", "init_cfg")


def used_levels(owner: Mapping, old: Sequence[Level]) -> list[int]:
    """Tells which levels the rest of the model reads.

    RAVLT does not make the others: a norm without a gradient would stop DDP.

    Args:
        owner: Config of the model that holds the backbone.
        old: What the old backbone gives.

    Returns:
        Their positions, in order.
    """
    every = list(range(len(old)))
    neck, _ = _first_neck(owner, ())
    if neck:
        whole = list(neck.get("in_channels") or ()) == [x.channels for x in old]
        return every[neck.get("start_level", 0) :] if whole else every
    heads = [head for head, _ in _segmentation_heads(owner, ())]
    used = {i % len(old) for head in heads for i in _indices(head)}
    return sorted(used) or every


def rewire(
    owner: Mapping,
    path: Path,
    old: Sequence[Level],
    used: Sequence[int],
    new: Sequence[int],
) -> Iterator[Change]:
    """Makes whatever reads the backbone expect the new channels.

    A neck reads in place of the heads behind it. Without one, every part of the model
    may read.

    Args:
        owner: Config of the model that holds the backbone.
        path: Where it is in the config.
        old: What the old backbone gave.
        used: Positions of the levels that the new one gives, too.
        new: The new channels at these.

    Yields:
        A change for each number.
    """
    channels = [level.channels for level in old]
    # The last of the new levels stands in for one that is not there any more.
    at = [new[used.index(i)] if i in used else new[-1] for i in range(len(old))]
    neck, neck_path = _first_neck(owner, path)
    if not neck:
        for key, value in owner.items():
            if key not in _OTHER:
                yield from _tree(value, (*path, key), channels, at)
        if len(used) < len(old):
            yield from _shift_indices(owner, path, len(old), used)
        return
    if len(used) == len(old):
        yield from _node(neck, neck_path, channels, at)
        return
    yield Change((*neck_path, "in_channels"), list(new), "RAVLT's channels")
    yield Change((*neck_path, "start_level"), 0, "RAVLT gives the used levels only")
    if neck.get("end_level", -1) not in (-1, None):
        end = neck["end_level"] - used[0]
        yield Change((*neck_path, "end_level"), end, "counted from the first one used")


def _segmentation_heads(owner: Mapping, path: Path) -> Iterator[tuple[Mapping, Path]]:
    for key in ("decode_head", "auxiliary_head"):
        node = owner.get(key)
        if isinstance(node, Mapping):
            yield node, (*path, key)
        else:
            yield from ((head, (*path, key, i)) for i, head in enumerate(node or ()))


def _indices(head: Mapping) -> list[int]:
    index = head.get("in_index", -1)
    read = [index] if isinstance(index, int) else list(index)
    # DeepLabV3+ reads the first level besides.
    return [0, *read] if head.get("c1_in_channels") else read


def _shift_indices(
    owner: Mapping, path: Path, count: int, used: Sequence[int]
) -> Iterator[Change]:
    for head, head_path in _segmentation_heads(owner, path):
        if "in_index" in head:
            found = head["in_index"]
            if isinstance(found, int):
                wanted = used.index(found % count)
            else:
                wanted = [used.index(i % count) for i in found]
            if wanted != found:
                why = "among the levels that are used"
                yield Change((*head_path, "in_index"), wanted, why)


def _first_neck(owner: Mapping, path: Path) -> tuple[Mapping | None, Path]:
    neck = owner.get("neck")
    if isinstance(neck, list | tuple) and neck:
        return neck[0], (*path, "neck", 0)
    return neck, (*path, "neck")


def _tree(node, path: Path, old: list[int], new: Sequence[int]) -> Iterator[Change]:
    if isinstance(node, Mapping):
        yield from _node(node, path, old, new)
        for key, value in node.items():
            yield from _tree(value, (*path, key), old, new)
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _tree(value, (*path, i), old, new)


def _node(
    node: Mapping, path: Path, old: list[int], new: Sequence[int]
) -> Iterator[Change]:
    if node.get("c1_in_channels"):
        yield Change((*path, "c1_in_channels"), new[0], "RAVLT's channels")
    found = node.get("in_channels")
    if found is None:
        return
    wanted = _translate(found, node.get("in_index"), old, new)
    if wanted is not None and wanted != found:
        yield Change((*path, "in_channels"), wanted, "RAVLT's channels")


def _translate(found, index, old: list[int], new: Sequence[int]):
    """The new value of ``in_channels``, or None if it is not about the backbone."""
    if isinstance(found, int):
        if isinstance(index, int):
            return new[index] if old[index] == found else None
        return new[-1] if index is None and old[-1] == found else None
    values = list(found)
    if isinstance(index, list | tuple):
        if [old[i] for i in index] == values:
            return [new[i] for i in index]
        return None
    for candidate, result in ((old, list(new)), (old[::-1], list(new)[::-1])):
        if candidate == values:
            return result
    return None
