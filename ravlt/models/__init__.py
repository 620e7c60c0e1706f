"""RAVLT and its parts."""

from .attention import CORES, build_core
from .classifier import RAVLTClassifier
from .ravlt import RAVLT, GatedAttention

Attention = GatedAttention  # its name in ravlt 0.1

__all__ = [
    "CORES",
    "RAVLT",
    "Attention",
    "GatedAttention",
    "RAVLTClassifier",
    "build_core",
]
