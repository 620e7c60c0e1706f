"""The shapes data set for instance and semantic segmentation, generated on demand.

Its folder has the layouts of COCO and of ADE20K, which share the images. ``file_name``
in the COCO files is relative to ``images/<split>/``.
"""

import os
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ravlt.errors import RAVLTError

from .folder import check_counts, write_image, write_json, write_once
from .render import OUTLINES, Instance, draw_scene

CLASSES = tuple(OUTLINES)
SEG_CLASSES = ("background",) + CLASSES
PALETTE = (
    (96, 96, 96),
    (230, 60, 50),
    (60, 130, 230),
    (70, 190, 80),
    (250, 190, 40),
    (170, 80, 200),
)

# Increase it with every change to the images: folders of other versions are refused.
_VERSION = 2
_MIN_SIDE = 64
_JPEG_QUALITY = 92


def write_shapes(
    root: str | os.PathLike,
    num_train: int = 600,
    num_val: int = 150,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
) -> Path:
    """Write the shapes data set, unless the folder already holds the same one.

    An image shows four to nine objects of random class, size, pose, colour and
    texture that partly hide each other; about one image in twelve also has a crowd.
    Image i of a split depends on the seed, the size and i, not on the counts. The
    folder is created atomically::

        images/{training,validation}/NNNNNN.jpg
        annotations/{training,validation}/NNNNNN.png   1: background, from 2: classes
        annotations/instances_{training,validation}.json
        shapes.json                                    the arguments

    Label files follow ADE20K: 0 means unlabelled, and does not occur. With
    ``reduce_zero_label=True`` labels are indices into ``SEG_CLASSES``.

    Args:
        root: The data set's folder; it must be new, empty or hold the same set.
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.
        size: Height and width of the images in pixels, each at least 64. Objects
            scale with the shorter one.
        seed: An integer of at least 0.

    Returns:
        The folder, as given.

    Raises:
        RAVLTError: If an argument is out of range, or the folder holds other files
            or a set with other arguments.
    """
    manifest = _manifest(num_train, num_val, size, seed)

    def write(draft: Path) -> None:
        _write_split(draft, "training", 0, num_train, manifest)
        _write_split(draft, "validation", 1, num_val, manifest)

    return write_once(Path(root), "shapes", manifest, write)


def _manifest(num_train: int, num_val: int, size: tuple[int, int], seed: int) -> dict:
    check_counts(num_train, num_val, seed)
    if len(size) != 2 or min(size) < _MIN_SIDE:
        raise RAVLTError(
            f"size is {tuple(size)}: give a height and a width of at least "
            f"{_MIN_SIDE} pixels."
        )
    return {
        "version": _VERSION,
        "seed": seed,
        "size": list(size),
        "num_train": num_train,
        "num_val": num_val,
        "classes": list(CLASSES),
    }


def _write_split(
    root: Path, split: str, split_index: int, count: int, manifest: dict
) -> None:
    image_dir, label_dir = root / "images" / split, root / "annotations" / split
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    height, width = manifest["size"]
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng([manifest["seed"], split_index, index])
        image, instances = draw_scene(rng, (height, width))
        image_id = index + 1
        name = f"{image_id:06d}"
        write_image(
            image_dir / f"{name}.jpg",
            cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
        )
        write_image(label_dir / f"{name}.png", _labels(instances, (height, width)))
        images.append(
            {
                "id": image_id,
                "file_name": f"{name}.jpg",
                "width": width,
                "height": height,
            }
        )
        for instance in instances:
            annotations.append(_annotation(instance, len(annotations) + 1, image_id))
    write_json(
        root / "annotations" / f"instances_{split}.json",
        {
            "info": {"description": f"RAVLT shapes, {split}", "version": str(_VERSION)},
            "licenses": [],
            "images": images,
            "categories": [
                {"id": i, "name": name, "supercategory": "shape"}
                for i, name in enumerate(CLASSES, 1)
            ],
            "annotations": annotations,
        },
    )


def _labels(instances: list[Instance], size: tuple[int, int]) -> np.ndarray:
    labels = np.ones(size, np.uint8)
    for instance in instances:
        labels[instance.mask] = instance.label + 2
    return labels


def _annotation(instance: Instance, annotation_id: int, image_id: int) -> dict:
    x, y, width, height = cv2.boundingRect(instance.mask.astype(np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": instance.label + 1,
        "bbox": [x, y, width, height],
        "area": int(np.count_nonzero(instance.mask)),
        "iscrowd": int(instance.crowd),
        "segmentation": _segmentation(instance),
    }


def _segmentation(instance: Instance) -> list | dict:
    """Encode a mask as polygons if these are exact, else as a compressed RLE."""
    if not instance.crowd:
        polygons = _polygons(instance.mask)
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *instance.mask.shape))
        # Outer contours fill the holes of a mask.
        if np.array_equal(coco_mask.decode(rle), instance.mask):
            return polygons
    rle = coco_mask.encode(np.asfortranarray(instance.mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _polygons(mask: np.ndarray) -> list[list[float]]:
    """Trace the outer contours, in pixels from the image's upper left corner."""
    # OpenCV's contours join pixel centres. On doubled pixels they lie a quarter of a
    # pixel inside the mask's border, so that they enclose the mask's centres only.
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((c.reshape(-1) + 0.5) / 2).tolist() for c in contours]
