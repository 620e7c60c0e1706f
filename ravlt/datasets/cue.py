"""A built-in data set whose labels depend on what is far away, drawn on demand.

Strips of 64 x 256 pixels. At one end lie two small cues, a disk and a square, each of
one of three colours; at the other, grey disks and squares. A grey object's class is the
colour of the cue of its own form. All that is near it is independent of both colours.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ravlt.datasets.folder import check_counts, write_image, write_once

SIZE = (64, 256)  # height and width of the images, in pixels
COLOURS = {"red": (200, 60, 60), "green": (60, 180, 60), "blue": (60, 80, 210)}
SEG_CLASSES = ("background", *COLOURS)
PALETTE = ((96, 96, 96), *COLOURS.values())
FORMS = ("disk", "square")
# Columns of each; between them are 160 pixels without either.
CUE_COLUMNS = (0, 24)
OBJECT_COLUMNS = (184, 256)

# Raise it with any change to the pictures, or old copies pass for new ones.
_VERSION = 1
_SLOT = (32, 24)  # rows and columns, one cue or object in each
_CUE_RADIUS = (5.0, 7.0)
_OBJECT_RADIUS = (7.0, 10.0)
_NUM_OBJECTS = (2, 5)
_NOISE = 6.0


def write_cue(
    root: str | os.PathLike, num_train: int = 600, num_val: int = 150, seed: int = 0
) -> Path:
    """Writes the cue data set, unless the folder already holds the same one.

    Image i of a split depends on the seed and i, not on the counts. The folder appears
    only when it is complete::

        images/{training,validation}/NNNNNN.png
        annotations/{training,validation}/NNNNNN.png   1 background, 2.. the colours
        cue.json                                       the arguments

    Labels follow ADE20K, as in :func:`ravlt.datasets.shapes.write_shapes`.

    Args:
        root: The data set's folder; it must be new, empty or hold the same set.
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.
        seed: Any integer from 0.

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
                colours = rng.integers(len(COLOURS), size=len(FORMS))
                image, classes = draw_strip(rng, colours)
                name = f"{index + 1:06d}.png"
                # Without loss: no block of a JPEG says what its neighbour held.
                write_image(images / name, image[..., ::-1])
                write_image(labels / name, classes + 1)

    return write_once(Path(root), "cue", manifest, write)


def draw_strip(
    rng: np.random.Generator, colours: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws an image and its classes.

    Args:
        rng: Source of every other choice; the same state gives the same pixels outside
            of the cues, whatever the colours.
        colours: Of the disk's cue and the square's, indices into ``COLOURS``.

    Returns:
        The RGB image, uint8 of shape (64, 256, 3), and indices into ``SEG_CLASSES``,
        uint8 of shape (64, 256). Cues are background.
    """
    classes = np.zeros(SIZE, np.uint8)
    level = rng.uniform(100, 150)
    slope = rng.uniform(-20, 20)
    ramp = level + slope * np.linspace(-1, 1, SIZE[1])
    canvas = np.broadcast_to(ramp[:, None], (*SIZE, 3)).copy()
    order = rng.permutation(len(FORMS))  # which cue is above
    for form, corner in zip(order, _slots(CUE_COLUMNS), strict=True):
        mask = _form(rng, form, corner, _CUE_RADIUS)
        canvas[mask] = tuple(COLOURS.values())[colours[form]]
    slots = rng.permutation(_slots(OBJECT_COLUMNS))
    for corner in slots[: rng.integers(*_NUM_OBJECTS, endpoint=True)]:
        form = rng.integers(len(FORMS))
        mask = _form(rng, form, corner, _OBJECT_RADIUS)
        canvas[mask] = level + rng.choice((-1, 1)) * rng.uniform(50, 80)
        classes[mask] = 1 + colours[form]
    noisy = canvas + rng.normal(0, _NOISE, canvas.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), classes


def _slots(columns: tuple[int, int]) -> list[tuple[int, int]]:
    """Upper left corners of the slots in some columns."""
    rows = range(0, SIZE[0], _SLOT[0])
    return [(row, column) for row in rows for column in range(*columns, _SLOT[1])]


def _form(
    rng: np.random.Generator,
    form: int,
    corner: tuple[int, int],
    radii: tuple[float, float],
) -> np.ndarray:
    """Places a form somewhere in a slot; the boolean mask of its pixels, (64, 256)."""
    radius = rng.uniform(*radii)
    # A pixel's margin, so that no two of them touch.
    centre = corner + rng.uniform(radius + 1, np.array(_SLOT) - radius - 1)
    offset = np.indices(SIZE) + 0.5 - centre[:, None, None]
    if FORMS[form] == "disk":
        return np.hypot(*offset) <= radius
    # Areas are alike: size must not tell the form.
    return np.abs(offset).max(0) <= radius * np.sqrt(np.pi) / 2
