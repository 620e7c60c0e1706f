"""Which versions are installed, and which were tested."""

import platform
from importlib import metadata

import torch

from .text import release

_DISTRIBUTIONS = {
    "mmengine": ("mmengine", "onedl-mmengine", "mmengine-lite"),
    "mmcv": ("mmcv", "onedl-mmcv", "mmcv-lite"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "mmseg": ("mmsegmentation", "onedl-mmsegmentation"),
}

# Lowest and highest release with which the whole test suite has passed.
TESTED = {
    "python": ("3.10", "3.13"),
    "torch": ("2.10", "2.15"),
    "mmengine": ("0.10", "0.10"),
    "mmdet": ("3.3", "3.3"),
    "mmsegmentation": ("1.2", "1.2"),
    "onedl-mmengine": ("0.10", "0.10"),
    "onedl-mmdetection": ("3.5", "3.5"),
    "onedl-mmsegmentation": ("1.4", "1.4"),
}


def find_versions() -> dict[str, tuple[str, str]]:
    """Find the installed hosts.

    Returns:
        For each import name present, its distribution and version.
    """
    found = {}
    for module, names in _DISTRIBUTIONS.items():
        for name in names:
            if is_installed(name):
                found.setdefault(module, (name, metadata.version(name)))
    return found


def is_installed(distribution: str) -> bool:
    """Return whether pip has installed a distribution of this name."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def version_warnings() -> list[str]:
    """Compare Python, torch and the hosts with the tested range.

    Returns:
        One sentence for each that lies outside.
    """
    installed = {"python": platform.python_version(), "torch": torch.__version__}
    installed |= dict(find_versions().values())
    return [
        f"{name} {version} was not tested with ravlt: {low} to {high} were, so run the "
        f"tests (make test) before you rely on it."
        for name, version in installed.items()
        if name in TESTED
        for low, high in [TESTED[name]]
        if not release(low) <= release(version) <= release(high)
    ]
