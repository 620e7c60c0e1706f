"""Token mixers: one shell, interchangeable cores, and layers as papers have them."""

from .build import build_attention, plain_spec
from .cores import CORES, build_core
from .shell import Attention

__all__ = ["CORES", "Attention", "build_attention", "build_core", "plain_spec"]
