"""Confusion matrix of a segmentor."""

from collections.abc import Sequence

import numpy as np


def count_confusion(
    predicted: np.ndarray, labels: np.ndarray, num_classes: int, ignore: int
) -> np.ndarray:
    """Count the pixels of one image by label and prediction.

    Args:
        predicted: Classes of shape (H, W).
        labels: True classes of shape (H, W).
        num_classes: Number of classes.
        ignore: Label of pixels that are not counted.

    Returns:
        Counts of shape (classes, classes): rows are labels, columns are predictions.
    """
    valid = (labels != ignore) & (labels < num_classes) & (predicted < num_classes)
    pairs = num_classes * labels[valid].astype(np.int64) + predicted[valid]
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def draw_confusion(path: str, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Draw the matrix; a row shows the shares of its label's pixels.

    Args:
        path: Image file to write.
        counts: Sum of results of :func:`count_confusion`.
        classes: Names of the classes.
    """
    from matplotlib.figure import Figure  # heavy, and only needed here

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2 + 0.35 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    if len(classes) <= 30:
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else "black"
            axes.text(
                column, row, f"{share:.0%}", ha="center", va="center", color=color,
                fontsize=6,
            )  # fmt: skip
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=90, fontsize=6)
    axes.set_yticks(ticks, classes, fontsize=6)
    axes.set(xlabel="predicted", ylabel="labelled")
    figure.savefig(path, dpi=150)
