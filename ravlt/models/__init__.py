"""RAVLT and its parts."""

from .attention import Attention, build_core
from .classifier import RAVLTClassifier
from .ravlt import RAVLT

__all__ = ["RAVLT", "Attention", "RAVLTClassifier", "build_core"]
