"""The shapes data set of the tests, and an independent reading of its annotations."""

from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

TRAIN, VAL, SIZE = 24, 6, (128, 160)
SEED = 2  # three of the training images have a crowd


def annotations(root: Path, split: str) -> COCO:
    return COCO(root / "annotations" / f"instances_{split}.json")


def labels(root: Path, split: str, name: str) -> np.ndarray:
    path = root / "annotations" / split / name.replace(".jpg", ".png")
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
