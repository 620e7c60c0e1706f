"""The built-in data set: generated images of shapes that differ in outline only."""

from .dataset import write_shapes

__all__ = ["write_shapes"]
