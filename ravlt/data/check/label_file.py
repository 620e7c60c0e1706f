"""What the values in a label map stand for, as MMSegmentation reads them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .image_file import BadFile, Header, read_array

IGNORED = 255  # by MMSegmentation's loader, whatever the config's ignore_index


@dataclass(frozen=True)
class LabelRule:
    """How label files become classes.

    Attributes:
        num_classes: Number of classes; None leaves the values unchecked.
        reduce_zero_label: Whether 0 stands for none, and 1 for the first class.
        label_map: Class of each value, applied after that; None keeps them.
    """

    num_classes: int | None = None
    reduce_zero_label: bool = False
    label_map: Mapping[int, int] | None = None

    def classes(self) -> np.ndarray:
        """Gives what the loader makes of the values 0 to 255, int (256,)."""
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
    """Decodes a label map and looks at its size, channels and values.

    Args:
        data: Content of the file.
        header: Its header.
        rule: How it is read.
        size: Height and width of the image as it is loaded; None if unknown.

    Returns:
        The values in the file, (H, W).

    Raises:
        BadFile: If training would see other labels than the file's, or none.
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
    # uint8 first: unique() would sort the pixels, which takes longer than decoding.
    if labels.dtype in (np.uint8, bool):
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    else:
        present = np.unique(labels)
    # The loader keeps the last eight bits of any other.
    known = np.isin(present, np.arange(256))
    if rule.num_classes is not None:
        classes = rule.classes()[present[known].astype(int)]
        known[known] = (classes < rule.num_classes) | (classes == IGNORED)
    return present[~known].tolist()
