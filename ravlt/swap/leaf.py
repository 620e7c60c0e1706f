"""Writes a swap down as a config that inherits the original."""

from collections.abc import Sequence

from mmengine.config import Config

from .changes import Change


def leaf_config(base: str, cfg: Config, changes: Sequence[Change]) -> str:
    """Gives the text of a config that makes the changes, with a comment for each.

    Args:
        base: What it inherits, as ``_base_`` wants it.
        cfg: The swapped config: lists cannot be changed in part, and are taken from it.
        changes: What was changed.

    Returns:
        Python source.
    """
    tree: dict = {}
    for change in changes:
        _insert(tree, cfg, change)
    lines = [f"_base_ = {base!r}", ""]
    for key, node in tree.items():
        lines += [f"{key} = {_render(node, 0)}", ""]
    return "\n".join(lines)


class _Leaf:
    """A value that replaces what was there, and the reasons."""

    def __init__(self, value: object, whys: list[str]) -> None:
        self.value, self.whys = value, whys


def _insert(tree: dict, cfg: Config, change: Change) -> None:
    node, value = tree, cfg
    for i, key in enumerate(change.path):
        value = value[key]
        last = i == len(change.path) - 1
        if last or isinstance(change.path[i + 1], int):
            leaf = node.setdefault(key, _Leaf(value, []))
            if isinstance(leaf, _Leaf) and change.why not in leaf.whys:
                leaf.whys.append(change.why)
            return
        node = node.setdefault(key, {})


def _render(node, depth: int) -> str:
    if isinstance(node, _Leaf):
        return _source(node.value, depth, replaces=True)
    inner = "    " * (depth + 1)
    lines = ["dict("]
    for key, child in node.items():
        if isinstance(child, _Leaf):
            lines.append(f"{inner}# {'; '.join(child.whys)}")
        lines.append(f"{inner}{key}={_render(child, depth + 1)},")
    return "\n".join(lines) + "\n" + "    " * depth + ")"


def _source(value, depth: int, replaces: bool = False) -> str:
    """A value as Python; a dict that replaces another says so to mmengine."""
    if isinstance(value, dict):
        pairs = [f"{k}={_source(v, depth + 1)}" for k, v in value.items()]
        if any(not str(k).isidentifier() for k in value):
            pairs = [f"{k!r}: {_source(v, depth + 1)}" for k, v in value.items()]
            if replaces:
                pairs.insert(0, "'_delete_': True")
            return "{" + ", ".join(pairs) + "}"
        if replaces:
            pairs.insert(0, "_delete_=True")
        return f"dict({', '.join(pairs)})"
    if isinstance(value, list | tuple):
        items = ", ".join(_source(item, depth + 1) for item in value)
        if isinstance(value, tuple):
            return f"({items}{',' if len(value) == 1 else ''})"
        return f"[{items}]"
    return repr(value)
