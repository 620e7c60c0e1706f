"""RAVLT into any config of OpenMMLab."""

from .leaf import leaf_config
from .swap import plan_swap, swap_backbone

__all__ = ["leaf_config", "plan_swap", "swap_backbone"]
