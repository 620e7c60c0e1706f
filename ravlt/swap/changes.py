"""What a swap changes in a config, and why: applied, or written down as a config."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import Config

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Change:
    """A new value at a place of a config; a dict replaces what was there."""

    path: Path
    value: object
    why: str


def apply_changes(cfg: Config, changes: Sequence[Change]) -> None:
    """Makes the changes, in place."""
    for change in changes:
        node = cfg
        for key in change.path[:-1]:
            node = node[key]
        node[change.path[-1]] = copy.deepcopy(change.value)
