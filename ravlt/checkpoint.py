"""The path that scripts written for ravlt 0.1 import ``use_safe_loading`` from."""

from ravlt.weights.checkpoint import use_safe_loading

__all__ = ["use_safe_loading"]
