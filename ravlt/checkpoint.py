"""The path by which scripts and pages of ravlt 0.1 name two functions."""

from ravlt.weights.checkpoint import load_pretrained, use_safe_loading

__all__ = ["load_pretrained", "use_safe_loading"]
