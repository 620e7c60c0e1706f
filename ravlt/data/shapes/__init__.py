"""The built-in data set: shapes that differ in outline only, drawn on the spot."""

from .dataset import write_shapes

__all__ = ["write_shapes"]
