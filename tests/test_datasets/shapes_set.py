"""The shapes data set that the tests read, and its annotations."""

from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

TRAIN, VAL, SIZE = 24, 6, (128, 160)
# Three of the training images have a crowd.
SEED = 2


def annotations(root: Path, split: str) -> COCO:
    return COCO(root / "annotations" / f"instances_{split}.json")


def labels(root: Path, split: str, name: str) -> np.ndarray:
    path = root / "annotations" / split / name.replace(".jpg", ".png")
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
