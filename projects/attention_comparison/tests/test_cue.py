"""In the cue data set only the cue determines the class of an object."""

import json

import cv2
import numpy as np
import pytest

from cue import (
    COLOURS,
    CUE_COLUMNS,
    OBJECT_COLUMNS,
    SEG_CLASSES,
    draw_strip,
    write_cue,
)
from ravlt.errors import RAVLTError


def strip(seed: int, colour: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_strip(np.random.default_rng(seed), colour)


def vivid(image: np.ndarray) -> np.ndarray:
    return np.ptp(image.astype(int), axis=-1) > 80


def oracle(image: np.ndarray) -> int:
    """Return the class of the objects, read from the vivid pixels of the cue."""
    end = image[:, slice(*CUE_COLUMNS)]
    seen = end[vivid(end)].mean(0)
    distance = np.linalg.norm(seen - list(COLOURS.values()), axis=-1)
    return 1 + distance.argmin()


@pytest.mark.parametrize("seed", range(5))
def test_pixels_away_from_the_cue_are_the_same_for_every_class(seed):
    strips = [strip(seed, colour) for colour in range(len(COLOURS))]
    pixels = np.stack([image[:, CUE_COLUMNS[1] :] for image, _ in strips])
    assert (pixels == pixels[0]).all()
    # The labels nevertheless have each class once.
    labels = np.stack([classes for _, classes in strips])
    objects = labels[0] > 0
    assert objects.any()
    assert (np.sort(labels[:, objects], 0) == [[1], [2], [3], [4]]).all()
    assert (labels[:, ~objects] == 0).all()


def test_an_oracle_that_reads_the_cue_is_right():
    for seed in range(40):
        image, classes = strip(seed, seed % len(COLOURS))
        assert set(np.unique(classes)) == {0, oracle(image)}


def test_cue_and_objects_are_in_their_columns():
    counts = set()
    for seed in range(40):
        image, classes = strip(seed, seed % len(COLOURS))
        columns = (classes > 0).any(0).nonzero()[0]
        assert OBJECT_COLUMNS[0] <= columns[0] and columns[-1] < OBJECT_COLUMNS[1]
        counts.add(cv2.connectedComponents((classes > 0).astype(np.uint8))[0] - 1)
        colourful = vivid(image)
        assert colourful[:, slice(*CUE_COLUMNS)].sum() > 100
        assert not colourful[:, CUE_COLUMNS[1] :].any()
    assert counts == {1, 2}


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
        assert set(np.unique(stored)) == {1, 1 + oracle(image)}
        assert oracle(image) < len(SEG_CLASSES)
    more = write_cue(tmp_path / "more", 4, 2, seed=4)
    for name in images:
        assert (more / "images" / name).read_bytes() == first[f"images/{name}"]
    with pytest.raises(RAVLTError, match="cue data set made with other arguments"):
        write_cue(root, 3, 2, seed=5)
    assert json.loads((root / "cue.json").read_text())["seed"] == 4
    with pytest.raises(RAVLTError, match="num_val is 0"):
        write_cue(tmp_path / "none", 1, 0)
