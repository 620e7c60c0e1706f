"""Writes a swap down as a short config that inherits the original."""

import textwrap
from collections.abc import Mapping

from mmengine.config import Config

from .changes import Path, Swap

_WIDTH = 88


class _Value:
    """A value that replaces another, and the reasons."""

    def __init__(self, value: object) -> None:
        self.value = value
        self.whys: list[str] = []


def leaf_config(base: str, original: Config, swapped: Config, swap: Swap) -> str:
    """Gives the text of a config that makes a swap, with a comment for each change.

    Args:
        base: What it inherits, as ``_base_`` wants it.
        original: The config that it inherits.
        swapped: The config that it has to give: lists cannot be changed in part, and
            are taken from it.
        swap: The changes, and warnings for its head.

    Returns:
        Python source.
    """
    tree: dict = {}
    before, after = original.to_dict(), swapped.to_dict()  # names in place of classes
    for change in swap.changes:
        _insert(tree, before, after, change.path, change.why)
    lines = []
    for warning in swap.warnings:
        lines += textwrap.wrap(
            warning, _WIDTH, initial_indent="# Note: ", subsequent_indent="# "
        )
    lines += [f"_base_ = {_quote(base)}"]
    for key, node in tree.items():
        lines += ["", *_entry(str(key), node, 0)]
    return "\n".join(lines) + "\n"


def _insert(
    tree: dict, original: Mapping, swapped: Mapping, path: Path, why: str
) -> None:
    """Puts a change into a tree of dicts that ends in values."""
    key, *rest = path
    value = swapped[key]
    inherited = original.get(key)
    whole = isinstance(tree.get(key), _Value)
    # A child inherits through dicts only; a list is written whole.
    if rest and isinstance(inherited, Mapping) and not whole:
        _insert(tree.setdefault(key, {}), inherited, value, tuple(rest), why)
        return
    if isinstance(value, Mapping) and key in original:
        value = {"_delete_": True, **value}
    leaf = tree.setdefault(key, _Value(value))
    if why not in leaf.whys:
        leaf.whys.append(why)


def _entry(key: str, node, depth: int, colon: bool = False) -> list[str]:
    """A key and what it holds, as lines."""
    indent = "    " * depth
    head = f"{indent}{_quote(key)}: " if colon else f"{indent}{key}="
    if not depth:
        head = f"{key} = "
    end = "," if depth else ""
    if isinstance(node, _Value):
        why = f"# {'; '.join(node.whys)}"
        lines = _source(node.value, head, depth, end)
        if len(lines) == 1 and len(lines[0]) + len(why) + 2 <= _WIDTH:
            return [f"{lines[0]}  {why}"]
        return [indent + why, *lines]
    plain = _is_plain(node)
    lines = [head + ("dict(" if plain else "{")]
    for k, child in node.items():
        lines += _entry(str(k), child, depth + 1, not plain)
    return [*lines, indent + (")" if plain else "}") + end]


def _source(value, head: str, depth: int, end: str) -> list[str]:
    """A value behind its key: on one line if that fits, else an item a line."""
    line = head + _flat(value) + end
    if len(line) <= _WIDTH or not isinstance(value, Mapping | list | tuple):
        return [line]
    indent = "    " * (depth + 1)
    if isinstance(value, Mapping):
        plain = _is_plain(value)
        opening, closing = ("dict(", ")") if plain else ("{", "}")
        heads = [f"{indent}{k}=" if plain else f"{indent}{_quote(k)}: " for k in value]
        parts = list(value.values())
    else:
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        heads, parts = [indent] * len(value), list(value)
    lines = [head + opening]
    for part_head, part in zip(heads, parts, strict=True):
        lines += _source(part, part_head, depth + 1, ",")
    return [*lines, "    " * depth + closing + end]


def _flat(value) -> str:
    if isinstance(value, Mapping):
        if _is_plain(value):
            return f"dict({', '.join(f'{k}={_flat(v)}' for k, v in value.items())})"
        return f"{{{', '.join(f'{_quote(k)}: {_flat(v)}' for k, v in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_flat, value))}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_flat, value))}]"
    return _quote(value) if isinstance(value, str) else repr(value)


def _is_plain(value: Mapping) -> bool:
    """Whether dict(...) can spell all keys."""
    return all(str(k).isidentifier() for k in value)


def _quote(text: str) -> str:
    """As formatters write strings."""
    return f'"{text}"' if repr(text) == f"'{text}'" else repr(text)
