"""RAVLT and its parts."""

from .attention import Attention, build_core
from .ravlt import RAVLT

__all__ = ["RAVLT", "Attention", "build_core"]
