"""RAVLT and its parts."""

from .attention import CORES, build_core
from .classifier import RAVLTClassifier
from .ravlt import RAVLT, GatedAttention

__all__ = ["CORES", "RAVLT", "GatedAttention", "RAVLTClassifier", "build_core"]
