"""The cue data set: nothing near an object tells its class, and the cue does."""

import itertools
import json

import cv2
import numpy as np
import pytest

from ravlt.datasets.cue import (
    COLOURS,
    CUE_COLUMNS,
    FORMS,
    OBJECT_COLUMNS,
    SEG_CLASSES,
    SIZE,
    draw_strip,
    write_cue,
)
from ravlt.errors import RAVLTError

PAIRS = list(itertools.product(range(len(COLOURS)), repeat=len(FORMS)))


def strip(seed: int, colours) -> tuple[np.ndarray, np.ndarray]:
    return draw_strip(np.random.default_rng(seed), colours)


def blobs(mask: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Connected pixels, and the form that they fill: a disk fills 79 % of its box."""
    count, numbered = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    found = []
    for number in range(1, count):
        one = numbered == number
        rows, columns = one.any(1).sum(), one.any(0).sum()
        filled = one.sum() / (rows * columns)
        found.append(("disk" if filled < 0.9 else "square", one))
    return found


def oracle(image: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Classes of object pixels, from the cues' colours and nothing else of the image.

    Args:
        image: (64, 256, 3).
        objects: Where objects are, boolean of shape (64, 256).
    """
    pixels = image.astype(int)
    vivid = pixels.max(-1) - pixels.min(-1) > 60
    vivid[:, CUE_COLUMNS[1] :] = False
    palette = np.array(list(COLOURS.values()))
    colour_of = {}
    for form, mask in blobs(vivid):
        distance = np.linalg.norm(pixels[mask].mean(0) - palette, axis=-1)
        colour_of[form] = distance.argmin()
    classes = np.zeros(SIZE, np.uint8)
    for form, mask in blobs(objects):
        classes[mask] = 1 + colour_of[form]
    return classes


@pytest.mark.parametrize("seed", range(5))
def test_pixels_away_from_the_cues_are_the_same_for_every_class(seed):
    strips = [strip(seed, colours) for colours in PAIRS]
    pixels = np.stack([image[:, CUE_COLUMNS[1] :] for image, _ in strips])
    assert (pixels == pixels[0]).all()
    # And yet every object has every class, equally often.
    labels = np.stack([classes for _, classes in strips])
    objects = labels[0] > 0
    for c in range(1, len(SEG_CLASSES)):
        assert ((labels == c).sum(0)[objects] == len(PAIRS) / len(COLOURS)).all()
    assert (labels[:, ~objects] == 0).all()


def test_an_oracle_that_reads_the_cues_is_right():
    for seed, colours in itertools.product(range(12), PAIRS):
        image, classes = strip(seed, colours)
        np.testing.assert_array_equal(oracle(image, classes > 0), classes)


def test_one_cue_does_not_tell_the_other_form():
    shown = {form: set() for form in FORMS}
    for colours in PAIRS[:3]:  # one colour of the disk's cue, all of the square's
        _, classes = strip(0, colours)
        for form, mask in blobs(classes > 0):
            shown[form].update(classes[mask])
    assert {form: len(found) for form, found in shown.items()} == {
        "disk": 1,
        "square": 3,
    }


def test_objects_and_cues_are_in_their_columns_and_many():
    counts = set()
    for seed in range(40):
        image, classes = strip(seed, (0, 2))
        columns = (classes > 0).any(0).nonzero()[0]
        assert OBJECT_COLUMNS[0] <= columns[0] and columns[-1] < OBJECT_COLUMNS[1]
        counts.add(len(blobs(classes > 0)))
        spread = np.ptp(image.astype(int), axis=-1) > 80
        assert spread[:, : CUE_COLUMNS[1]].sum() > 2 * 3 * 5**2 * 0.9
        assert not spread[:, CUE_COLUMNS[1] :].any()
    assert counts == {2, 3, 4, 5}


def test_folder(tmp_path):
    root = write_cue(tmp_path / "cue", 3, 2, seed=4)
    names = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    images = [f"training/{i:06d}.png" for i in (1, 2, 3)]
    images += [f"validation/{i:06d}.png" for i in (1, 2)]
    kinds = ("images", "annotations")
    assert names == {f"{kind}/{n}" for kind in kinds for n in images} | {"cue.json"}
    first = {name: (root / name).read_bytes() for name in names}
    assert len({first[f"images/{name}"] for name in images}) == 5
    for name in images:
        image = cv2.imread(str(root / "images" / name))[..., ::-1]
        stored = cv2.imread(str(root / "annotations" / name), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(stored)) <= {1, 2, 3, 4}
        np.testing.assert_array_equal(oracle(image, stored > 1), stored - 1)
    more = write_cue(tmp_path / "more", 4, 2, seed=4)
    for name in images:
        assert (more / "images" / name).read_bytes() == first[f"images/{name}"]
    with pytest.raises(RAVLTError, match="cue data set made with other arguments"):
        write_cue(root, 3, 2, seed=5)
    assert json.loads((root / "cue.json").read_text())["seed"] == 4
    with pytest.raises(RAVLTError, match="num_val is 0"):
        write_cue(tmp_path / "none", 1, 0)
