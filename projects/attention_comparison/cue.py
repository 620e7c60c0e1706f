"""A generated data set whose labels depend on distant pixels.

Images are strips of 32 x 160 pixels. At one end is the cue, a small disk of one of four
colours. At the other end are grey disks and squares. Their class is the colour of the
cue; all pixels near them are independent of it.
"""

import os
from pathlib import Path

import numpy as np

from ravlt.data.shapes.folder import check_counts, write_image, write_once

SIZE = (32, 160)  # height and width of the images, in pixels
COLOURS = {
    "red": (220, 50, 50),
    "green": (50, 200, 50),
    "blue": (50, 70, 230),
    "yellow": (220, 210, 40),
}
SEG_CLASSES = ("background", *COLOURS)
PALETTE = ((96, 96, 96), *COLOURS.values())
# Columns of cues and of objects; the 88 columns between them have neither.
CUE_COLUMNS = (0, 24)
OBJECT_COLUMNS = (112, 160)

# Raise it with any change to the images; otherwise old folders pass as the new set.
_VERSION = 1
_SLOT = (32, 24)  # height and width of a slot, which has one cue or object
_CUE_RADIUS = (6.0, 8.0)
_OBJECT_RADIUS = (8.0, 10.5)
_NUM_OBJECTS = (1, 2)
_GROUND, _OBJECT, _NOISE = 120.0, 190.0, 6.0  # grey, grey, standard deviation


def write_cue(
    root: str | os.PathLike, num_train: int = 600, num_val: int = 150, seed: int = 0
) -> Path:
    """Write the cue data set, unless the folder already holds the same one.

    Image i of a split depends on the seed and i, not on the counts. The folder is
    created atomically, with this content::

        images/{training,validation}/NNNNNN.png
        annotations/{training,validation}/NNNNNN.png   1 background, 2.. the colours
        cue.json                                       the arguments

    Labels are numbered as in ADE20K, like those of
    :func:`ravlt.data.shapes.dataset.write_shapes`.

    Args:
        root: Folder of the data set; it must be new, empty or hold the same set.
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.
        seed: Non-negative integer.

    Returns:
        The folder, as given.

    Raises:
        RAVLTError: If an argument is out of range, or the folder holds other files
            or a set with other arguments.
    """
    check_counts(num_train, num_val, seed)
    counts = {"training": num_train, "validation": num_val}
    manifest = {"version": _VERSION, "seed": seed, **counts}

    def write(draft: Path) -> None:
        for split_index, (split, count) in enumerate(counts.items()):
            images, labels = (draft / n / split for n in ("images", "annotations"))
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for index in range(count):
                rng = np.random.default_rng([seed, split_index, index])
                image, classes = draw_strip(rng, rng.integers(len(COLOURS)))
                name = f"{index + 1:06d}.png"
                # PNG is lossless: a block of a JPEG could carry colour of the cue.
                write_image(images / name, image[..., ::-1])
                write_image(labels / name, classes + 1)

    return write_once(Path(root), "cue", manifest, write)


def draw_strip(rng: np.random.Generator, colour: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image and its classes.

    Args:
        rng: Generator of all other choices; the same state gives the same pixels
            outside the cue for every colour.
        colour: Index of the cue's colour in ``COLOURS``.

    Returns:
        The RGB image, uint8 of shape (32, 160, 3), and indices into ``SEG_CLASSES``,
        uint8 of shape (32, 160). The cue is background.
    """
    classes = np.zeros(SIZE, np.uint8)
    canvas = np.full((*SIZE, 3), _GROUND)
    cue = _disk(*_place(rng, rng.choice(_slots(CUE_COLUMNS)), _CUE_RADIUS))
    canvas[cue] = tuple(COLOURS.values())[colour]
    slots = rng.permutation(_slots(OBJECT_COLUMNS))
    for corner in slots[: rng.integers(*_NUM_OBJECTS, endpoint=True)]:
        form = _disk if rng.random() < 0.5 else _square
        mask = form(*_place(rng, corner, _OBJECT_RADIUS))
        canvas[mask] = _OBJECT
        classes[mask] = 1 + colour
    noisy = canvas + rng.normal(0, _NOISE, canvas.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), classes


def _slots(columns: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the upper left corners of the slots in a range of columns."""
    rows = range(0, SIZE[0], _SLOT[0])
    return [(row, column) for row in rows for column in range(*columns, _SLOT[1])]


def _place(
    rng: np.random.Generator, corner: np.ndarray, radii: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Draw a centre (row, column) in a slot, and a radius."""
    radius = rng.uniform(*radii)
    # A margin of one pixel keeps neighbouring forms apart.
    return corner + rng.uniform(radius + 1, np.array(_SLOT) - radius - 1), radius


def _disk(centre: np.ndarray, radius: float) -> np.ndarray:
    """Return the mask of a disk, boolean of shape (32, 160)."""
    return np.hypot(*_offsets(centre)) <= radius


def _square(centre: np.ndarray, radius: float) -> np.ndarray:
    """Return the mask of a square with the area of the disk of this radius."""
    return np.abs(_offsets(centre)).max(0) <= radius * np.sqrt(np.pi) / 2


def _offsets(centre: np.ndarray) -> np.ndarray:
    """Return each pixel's row and column relative to a centre, (2, 32, 160)."""
    return np.indices(SIZE) + 0.5 - centre[:, None, None]
