"""Token mixers: one shell, interchangeable cores."""

from .cores import CORES, build_core
from .shell import Attention

__all__ = ["CORES", "Attention", "build_core"]
