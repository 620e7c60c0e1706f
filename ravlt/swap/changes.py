"""What a swap changes in a config, and why."""

import copy
from dataclasses import dataclass

from mmengine.config import Config, ConfigDict

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Change:
    """A new value at a place of a config; a dict replaces what was there."""

    path: Path
    value: object
    why: str


@dataclass(frozen=True)
class Swap:
    """What puts RAVLT into a config.

    Args:
        changes: What changes, and why.
        warnings: What runs, but means something else than before.
    """

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]

    def apply(self, cfg: Config) -> Config:
        """Gives a changed copy of a config."""
        swapped = copy.deepcopy(cfg)
        for change in self.changes:
            node = swapped
            for key in change.path[:-1]:
                node = node[key]
            # Config converts dicts at its top only.
            value = ConfigDict(value=copy.deepcopy(change.value)).value
            node[change.path[-1]] = value
        return swapped


def dotted(path: Path) -> str:
    """A place as users write it, ``model.backbone``."""
    return ".".join(map(str, path))
