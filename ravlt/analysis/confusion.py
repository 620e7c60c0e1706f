"""Which classes a segmentor takes for which."""

from collections.abc import Sequence

import numpy as np


def count_confusion(
    predicted: np.ndarray, labels: np.ndarray, num_classes: int, ignore: int
) -> np.ndarray:
    """Counts the pixels of one image by label and prediction.

    Args:
        predicted: Classes of shape (H, W).
        labels: True classes of shape (H, W).
        num_classes: How many classes there are.
        ignore: The label that does not count.

    Returns:
        Pixels of shape (classes, classes): row the label, column the prediction.
    """
    known = (labels != ignore) & (labels < num_classes) & (predicted < num_classes)
    pairs = num_classes * labels[known].astype(np.int64) + predicted[known]
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def draw_confusion(path: str, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Draws the matrix, each row as shares of its label's pixels.

    Args:
        path: New picture.
        counts: As from :func:`count_confusion`.
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
    places = range(len(classes))
    axes.set_xticks(places, classes, rotation=90, fontsize=6)
    axes.set_yticks(places, classes, fontsize=6)
    axes.set(xlabel="predicted", ylabel="labelled")
    figure.savefig(path, dpi=150)
