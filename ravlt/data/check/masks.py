"""Check COCO masks without decoding them, because the decoder does not validate.

pycocotools 2.0.11 allocates all memory for a coordinate of NaN, crashes for one of 1e9,
and returns uninitialized memory for counts that do not fill the image.
"""

from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]
# Coordinates further outside the image, in multiples of its side, are errors.
_MAX_OUTSIDE = 2
_MAX_NUMBER = 1e18


def mask_fault(mask: list | dict, size: Size) -> str | None:
    """Return what is wrong with a segmentation, or None.

    Args:
        mask: Polygons, or an RLE with ``size`` and ``counts``.
        size: Height and width of the image.
    """
    if isinstance(mask, list):
        return _polygons_fault(mask, size)
    if not isinstance(mask, dict):
        return f"segmentation {mask!r:.40} is neither polygons nor run lengths"
    stated, counts = mask.get("size"), mask.get("counts")
    if stated not in (list(size), size):
        return f"run lengths of size {stated!r:.40}, and the image has {list(size)}"
    try:
        lengths = np.array(counts) if isinstance(counts, list) else run_lengths(counts)
        valid = lengths.dtype.kind in "iu" and lengths.min(initial=0) >= 0
        if valid and int(lengths.sum()) == size[0] * size[1]:
            return None
    except (AttributeError, OverflowError, ValueError):
        pass
    return f"run lengths do not fill the image's {size[0] * size[1]} pixels"


def run_lengths(code: str) -> np.ndarray:
    """Decode the compressed counts of a COCO RLE.

    A character holds six bits, as an offset from '0': five bits of a number, lowest
    first, and a bit that is set if the number continues. From the fourth number on,
    each is the difference to the number two before it.

    Returns:
        Lengths of the runs, int64; background and object alternate.

    Raises:
        ValueError: If the string is no compressed RLE.
    """
    bits = np.frombuffer(code.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not bits.size or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise ValueError("no compressed counts")
    last = (bits & 32) == 0
    first = np.flatnonzero(np.concatenate(([True], last[:-1])))
    place = np.arange(bits.size) - np.repeat(first, np.diff(first, append=bits.size))
    if place.max() > 11:
        raise ValueError("a count beyond 60 bits")
    numbers = np.add.reduceat((bits & 31) << (5 * place), first)
    ends = np.flatnonzero(last)
    numbers -= np.where(bits[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def is_short(mask: list | dict) -> bool:
    """Return whether the loader omits a polygon, which has under three points."""
    return isinstance(mask, list) and any(len(p) < 6 or len(p) % 2 for p in mask)


def extent(mask: list) -> tuple[float, float, float, float]:
    """Return the box around valid polygons: x, y, width, height in pixels."""
    xs = [x for polygon in mask for x in polygon[0::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def are_numbers(values: object, count: int | None = None) -> bool:
    """Return whether values are a list of finite numbers, of a length if given."""
    return (
        isinstance(values, Sequence)
        and (count is None or len(values) == count)
        # Not isfinite(), which raises an error for integers beyond the range of float.
        and all(
            type(v) in (int, float) and -_MAX_NUMBER < v < _MAX_NUMBER for v in values
        )
    )


def _polygons_fault(polygons: list, size: Size) -> str | None:
    for polygon in polygons:
        if not isinstance(polygon, list) or not are_numbers(polygon):
            return f"polygon {polygon!r:.60} is not a list of finite numbers"
        for values, side in ((polygon[0::2], size[1]), (polygon[1::2], size[0])):
            low, high = -_MAX_OUTSIDE * side, (1 + _MAX_OUTSIDE) * side
            if values and not low <= min(values) <= max(values) <= high:
                return f"polygon reaches from {min(values)} to {max(values)} of {side}"
    return None
