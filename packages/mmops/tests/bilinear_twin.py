"""The bilinear interpolation of mmcv's RoI operators, written as scalars."""

import math


def neighbours(position: float, size: int) -> tuple[int, int]:
    """Return the two pixels around a position, the border's beyond the border."""
    low = min(math.floor(max(position, 0)), size - 1)
    return low, min(low + 1, size - 1)


def is_outside(y: float, x: float, height: int, width: int) -> bool:
    """Return whether a sample lies more than one pixel beyond the map."""
    return y < -1 or y > height or x < -1 or x > width


def interpolate(plane, y: float, x: float):
    """Return the value of a plane, ``(height, width)``, at a position."""
    height, width = plane.shape
    if is_outside(y, x, height, width):
        return plane.sum() * 0
    (top, bottom), (left, right) = neighbours(y, height), neighbours(x, width)
    down = min(max(y, 0), height - 1) - top
    along = min(max(x, 0), width - 1) - left
    upper = (1 - along) * plane[top, left] + along * plane[top, right]
    lower = (1 - along) * plane[bottom, left] + along * plane[bottom, right]
    return (1 - down) * upper + down * lower


def sample_bin(start: float, size: float, bins: int, index: int, ratio: int):
    """Return the positions of a bin's samples along one axis."""
    step = size / bins
    number = ratio if ratio > 0 else max(math.ceil(step), 0)
    return [start + index * step + (i + 0.5) * step / number for i in range(number)]
