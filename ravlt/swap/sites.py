"""Where the backbones of a config are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ravlt.config import type_name

from .changes import Path


@dataclass(frozen=True)
class Site:
    """A model with a backbone: its config, and where it is."""

    owner: Mapping
    path: Path

    @property
    def backbone(self) -> Mapping:
        """Config of the backbone."""
        return self.owner["backbone"]

    @property
    def kind(self) -> str:
        """Type of the backbone."""
        return type_name(self.backbone)

    def necks(self) -> Iterator[tuple[Mapping, Path]]:
        """The necks in their order, and where they are."""
        neck, path = self.owner.get("neck"), (*self.path, "neck")
        if isinstance(neck, Mapping):
            yield neck, path
        for i, part in enumerate(neck if isinstance(neck, list | tuple) else ()):
            yield part, (*path, i)


def find_sites(node, path: Path = ("model",)) -> Iterator[Site]:
    """Finds every part of a model that has a backbone, however deep.

    Args:
        node: Config of the model.
        path: Where it is.
    """
    if isinstance(node, Mapping):
        backbone = node.get("backbone")
        if isinstance(backbone, Mapping) and "type" in backbone:
            yield Site(node, path)
        for key, value in node.items():
            if key != "backbone":
                yield from find_sites(value, (*path, key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from find_sites(value, (*path, i))
