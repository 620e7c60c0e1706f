"""RAVLT into any config of OpenMMLab."""

from .changes import Change, apply_changes
from .leaf import leaf_config
from .swap import swap_backbone, swap_changes

__all__ = ["Change", "apply_changes", "leaf_config", "swap_backbone", "swap_changes"]
