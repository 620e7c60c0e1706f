"""Checks of COCO masks, without decoding them: the decoder believes what it is given.

Of a coordinate that is not a number, pycocotools 2.0.11 takes all memory; of one of
1e9, it crashes; of counts that do not fill the image, it gives what memory held.
"""

from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]
# In sizes of the image: beyond it, no annotator drew it.
_FAR = 2
_MOST = 1e18


def mask_fault(mask: list | dict, size: Size) -> str | None:
    """Tells what is wrong with a segmentation, or None.

    Args:
        mask: Polygons, or a run-length code with ``size`` and ``counts``.
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
        sound = lengths.dtype.kind in "iu" and lengths.min(initial=0) >= 0
        if sound and int(lengths.sum()) == size[0] * size[1]:
            return None
    except (AttributeError, OverflowError, ValueError):
        pass
    return f"run lengths do not fill the image's {size[0] * size[1]} pixels"


def run_lengths(code: str) -> np.ndarray:
    """Decodes COCO's compressed counts.

    Six bits a character from '0' on: five of the number, lowest first, and one that
    says that it goes on; from the fourth number on, differences to the last but one.

    Returns:
        int64, background and object in turn.

    Raises:
        ValueError: If it is no such code.
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
    """Tells polygons of which at least one has no area to the loader."""
    return isinstance(mask, list) and any(len(p) < 6 or len(p) % 2 for p in mask)


def extent(mask: list) -> tuple[float, float, float, float]:
    """Gives the box around sound polygons: x, y, width, height in pixels."""
    xs = [x for polygon in mask for x in polygon[0::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def are_numbers(values: object, count: int | None = None) -> bool:
    """Tells a list of finite numbers, of a given length if there is one."""
    return (
        isinstance(values, Sequence)
        and (count is None or len(values) == count)
        # Comparing, because isfinite() fails of whole numbers that no float holds.
        and all(type(v) in (int, float) and -_MOST < v < _MOST for v in values)
    )


def _polygons_fault(polygons: list, size: Size) -> str | None:
    for polygon in polygons:
        if not isinstance(polygon, list) or not are_numbers(polygon):
            return f"polygon {polygon!r:.60} is not a list of finite numbers"
        for values, side in ((polygon[0::2], size[1]), (polygon[1::2], size[0])):
            if values and not -_FAR * side <= min(values) <= max(values) <= (
                (1 + _FAR) * side
            ):
                return f"polygon reaches from {min(values)} to {max(values)} of {side}"
    return None
