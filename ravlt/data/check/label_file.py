"""Check the values of a label map against the classes, as MMSegmentation reads it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .image_file import BadFile, Header, read_array

IGNORED = 255  # by MMSegmentation's loader, whatever the config's ignore_index


@dataclass(frozen=True)
class LabelRule:
    """Mapping from the values in label files to classes.

    Attributes:
        num_classes: Number of classes; None leaves the values unchecked.
        reduce_zero_label: Whether 0 is ignored and 1 is the first class.
        label_map: Class of each value, applied after ``reduce_zero_label``; None keeps
            the values.
    """

    num_classes: int | None = None
    reduce_zero_label: bool = False
    label_map: Mapping[int, int] | None = None

    def classes(self) -> np.ndarray:
        """Return the classes that the loader assigns to the values 0 to 255, (256,)."""
        values = np.arange(256)
        if self.reduce_zero_label:
            values = np.where((values == 0) | (values == 255), IGNORED, values - 1)
        if self.label_map:
            old = values.copy()
            for value, label in self.label_map.items():
                values[old == value] = label
        return values


def check_labels(
    data: bytes, header: Header, rule: LabelRule, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode a label map and check its size, channels and values.

    Args:
        data: Content of the file.
        header: Header of the file.
        rule: Mapping from values to classes.
        size: Height and width of the image as it is loaded; None if unknown.

    Returns:
        The values in the file, (H, W).

    Raises:
        BadFile: If training would use other labels than those in the file, or none.
    """
    labels = read_array(data)
    if labels.ndim != 2:
        raise BadFile(
            f"a label map has one channel of class indices, and this one is "
            f"{header.mode} with {labels.shape[2]}"
        )
    if size and labels.shape != size:
        raise BadFile(
            f"its height and width are {labels.shape}, and the image's {size}"
        )
    if header.format in ("JPEG", "MPO"):
        raise BadFile("JPEG changes labels, which need a lossless format such as PNG")
    if header.raw_mode in ("L;2", "L;4"):
        raise BadFile(f"values of {header.raw_mode[2]} bits are stretched to 8")
    wrong = _values_of_no_class(labels, rule)
    if wrong:
        known = f"the {rule.num_classes} classes" if rule.num_classes else "one byte"
        shown = ", ".join(map(str, wrong[:5])) + ", ..." * (len(wrong) > 5)
        raise BadFile(f"the values {shown} are outside of {known}")
    return labels


def _values_of_no_class(labels: np.ndarray, rule: LabelRule) -> list:
    # For bytes, count: unique() sorts the pixels, which takes longer than decoding.
    if labels.dtype in (np.uint8, bool):
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    else:
        present = np.unique(labels)
    # The loader keeps only the lowest eight bits of other values.
    known = np.isin(present, np.arange(256))
    if rule.num_classes is not None:
        classes = rule.classes()[present[known].astype(int)]
        known[known] = (classes < rule.num_classes) | (classes == IGNORED)
    return present[~known].tolist()
