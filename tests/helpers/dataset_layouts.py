"""Tiny data sets, two images a split, in the layouts of the public ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 48, 64

# Images, label maps and splits of the semantic data sets; {i} is a number.
SEMANTIC = {
    "ade20k": (
        "images/{split}/ADE_{split}_{i:08}.jpg",
        "annotations/{split}/ADE_{split}_{i:08}.png",
        ("training", "validation"),
    ),
    "cityscapes": (
        "leftImg8bit/{split}/aachen/aachen_{i:06}_000019_leftImg8bit.png",
        "gtFine/{split}/aachen/aachen_{i:06}_000019_gtFine_labelTrainIds.png",
        ("train", "val"),
    ),
    "loveda": (
        "img_dir/{split}/{i}.png",
        "ann_dir/{split}/{i}.png",
        ("train", "val"),
    ),
    "isaid": (
        "img_dir/{split}/P{i:04}_0_896_0_896.png",
        "ann_dir/{split}/P{i:04}_0_896_0_896_instance_color_RGB.png",
        ("train", "val"),
    ),
}
# What the label maps hold: a border, which is no class where the data set has such a
# number, around an object of the last class, on the first.
LABELS = {
    "ade20k": (0, 1, 150),
    "cityscapes": (255, 0, 18),
    "loveda": (0, 1, 7),
    "isaid": (255, 0, 15),
}


def write_semantic(root: Path, name: str) -> None:
    """Write a data set of label maps.

    Args:
        root: Folder to write to.
        name: One of `SEMANTIC`.
    """
    image_path, label_path, splits = SEMANTIC[name]
    border, ground, last = LABELS[name]
    for split in splits:
        for i, image in enumerate(_images(), 1):
            labels = np.full((HEIGHT, WIDTH), ground, np.uint8)
            x, y, w, h = _box(i)
            labels[y : y + h, x : x + w] = last
            labels[:4] = border
            _write(root / image_path.format(split=split, i=i), image)
            _write(root / label_path.format(split=split, i=i), labels)


def write_coco(root: Path, classes: tuple[str, ...], things: int) -> None:
    """Write instances and panoptic label maps as COCO has them.

    Each image has an object of the last thing class, on stuff of the last class.

    Args:
        root: Folder to write to.
        classes: Names, things first.
        things: How many of the classes are things.
    """
    categories = [
        dict(id=i, name=name, isthing=int(i <= things), supercategory="any")
        for i, name in enumerate(classes, 1)
    ]
    for split in ("train2017", "val2017"):
        records, objects, panoptic = [], [], []
        for i, image in enumerate(_images(), 1):
            name = f"{i:012}"
            records.append(
                dict(id=i, file_name=f"{name}.jpg", height=HEIGHT, width=WIDTH)
            )
            _write(root / split / f"{name}.jpg", image)
            x, y, w, h = _box(i)
            thing = dict(id=i, category_id=things, bbox=[x, y, w, h], area=w * h)
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            objects.append(thing | dict(image_id=i, iscrowd=0, segmentation=[corners]))
            ids = np.full((HEIGHT, WIDTH), 1000, np.int64)
            ids[y : y + h, x : x + w] = i
            stuff = dict(
                id=1000,
                category_id=len(classes),
                bbox=[0, 0, WIDTH, HEIGHT],
                area=HEIGHT * WIDTH - w * h,
            )
            panoptic.append(
                dict(
                    image_id=i,
                    file_name=f"{name}.png",
                    segments_info=[part | dict(iscrowd=0) for part in (thing, stuff)],
                )
            )
            # An id is R + 256 G + 65536 B, and OpenCV writes channels as BGR.
            colors = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], -1)
            folder = root / "annotations" / f"panoptic_{split}"
            _write(folder / f"{name}.png", colors.astype(np.uint8))
        for kind, found, kinds in (
            ("instances", objects, categories[:things]),
            ("panoptic", panoptic, categories),
        ):
            path = root / "annotations" / f"{kind}_{split}.json"
            content = dict(images=records, annotations=found, categories=kinds)
            path.write_text(json.dumps(content))


def _images() -> Iterator[np.ndarray]:
    """Yield the two images of a split: noise, with a darker object."""
    generator = np.random.default_rng(0)
    for i in (1, 2):
        image = generator.integers(128, 256, (HEIGHT, WIDTH, 3), np.uint8)
        x, y, w, h = _box(i)
        image[y : y + h, x : x + w] //= 4
        yield image


def _box(i: int) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the object in an image."""
    return 8 * i, 4 * i + 4, 30, 25


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
