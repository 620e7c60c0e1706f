"""Modules that a config imports: RAVLT, and no longer those of the old backbone."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from mmengine.config import Config

from .changes import Change
from .sites import Site

_ZOOS = {"mmpretrain", "mmcls"}  # packages whose parts are named with a prefix


def import_changes(cfg: Config, swapped: Config, sites: Sequence[Site]) -> list[Change]:
    """Import RAVLT, and leave out packages that only the old backbones need.

    Args:
        cfg: The config.
        swapped: The same with RAVLT as its backbone.
        sites: Where its backbones are.
    """
    imports = cfg.get("custom_imports") or {}
    names = imports.get("imports") or []
    names = [names] if isinstance(names, str) else list(names)
    packages = {_package(site.backbone["type"]) for site in sites} - {None}
    gone = {
        package
        for package in packages
        # Another package may register parts that the config names without it.
        if (package in _ZOOS or find_spec(package) is None)
        and not _names_part_of(package, swapped.to_dict())
    }
    kept = [name for name in names if name.partition(".")[0] not in gone]
    whys = [f"only the old backbone needs {name}" for name in names if name not in kept]
    if "ravlt" not in kept:
        kept.append("ravlt")
        whys.append("registers RAVLT")
    if not whys:
        return []
    why = "; ".join(whys)
    if imports:
        return [Change(("custom_imports", "imports"), kept, why)]
    return [Change(("custom_imports",), dict(imports=kept), why)]


def _package(kind: str | type) -> str | None:
    """Return the package that a type names, ``mmpretrain`` of mmpretrain.ConvNeXt."""
    if not isinstance(kind, str) or "." not in kind:
        return None
    return kind.partition(".")[0]


def _names_part_of(package: str, node) -> bool:
    """True if a config names a part of a package, apart from its imports."""
    if isinstance(node, Mapping):
        return any(
            _names_part_of(package, value)
            for key, value in node.items()
            if key != "custom_imports"
        )
    if isinstance(node, list | tuple):
        return any(_names_part_of(package, value) for value in node)
    return isinstance(node, str) and node.startswith(f"{package}.")
