"""Confusion matrices, counted by hand, and their figure."""

import numpy as np
from PIL import Image

from ravlt.analysis.confusion import count_confusion, draw_confusion


def test_counts_by_hand():
    labels = np.array([[0, 0, 1], [2, 255, 1]])
    predicted = np.array([[0, 1, 1], [0, 2, 1]])
    counts = count_confusion(predicted, labels, 3, ignore=255)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    # 255 is then a label outside of the classes.
    counts = count_confusion(predicted, labels, 3, ignore=1)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_picture(tmp_path):
    counts = np.array([[9, 1], [0, 0]])
    draw_confusion(str(tmp_path / "c.png"), counts, ["sky", "road"])
    with Image.open(tmp_path / "c.png") as image:
        grey = np.asarray(image.convert("L"))
    assert grey.min() < 60
    assert (grey == 255).mean() > 0.3
