"""The shapes data set on disk: files, annotations and errors."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from helpers.shapes_dataset import SEED, SIZE, TRAIN, VAL, annotations, labels
from ravlt.data.shapes import write_shapes
from ravlt.data.shapes.dataset import CLASSES, PALETTE, SEG_CLASSES, _segmentation
from ravlt.data.shapes.render import Instance
from ravlt.errors import RAVLTError


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_names_and_colours_agree():
    assert CLASSES == ("disk", "square", "triangle", "star", "cross")
    assert SEG_CLASSES[0] == "background" and SEG_CLASSES[1:] == CLASSES
    assert len(set(PALETTE)) == len(SEG_CLASSES)


def test_layout(root):
    names = set(contents(root))
    expected = {"shapes.json"}
    for split, count in (("training", TRAIN), ("validation", VAL)):
        expected.add(f"annotations/instances_{split}.json")
        for i in range(1, count + 1):
            expected.add(f"images/{split}/{i:06d}.jpg")
            expected.add(f"annotations/{split}/{i:06d}.png")
    assert names == expected
    assert list(root.parent.iterdir()) == [root], "temporary files were left"
    image = cv2.imread(str(root / "images/training/000001.jpg"))
    assert image.shape == (*SIZE, 3)


def test_coco_keys_and_ids(root):
    path = root / "annotations" / "instances_training.json"
    content = json.loads(path.read_text())
    assert {"info", "licenses", "images", "categories", "annotations"} == set(content)
    assert [c["id"] for c in content["categories"]] == [1, 2, 3, 4, 5]
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    assert [i["id"] for i in content["images"]] == list(range(1, TRAIN + 1))
    ids = [a["id"] for a in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_same_arguments_give_the_same_bytes(root, tmp_path):
    assert contents(
        write_shapes(tmp_path / "again", TRAIN, VAL, SIZE, SEED)
    ) == contents(root)


def test_an_image_does_not_depend_on_the_counts(root, tmp_path):
    few = contents(write_shapes(tmp_path / "few", 3, 2, SIZE, SEED))
    many = contents(root)
    images = {name for name in few if not name.endswith(".json")}
    assert len(images) == 10
    assert all(few[name] == many[name] for name in images)
    name = "annotations/instances_training.json"
    start = json.loads(few[name])["annotations"]
    assert start == json.loads(many[name])["annotations"][: len(start)]


def test_seed_and_split_change_the_images(root, tmp_path):
    other = contents(write_shapes(tmp_path / "other", 1, 1, SIZE, seed=1))
    first = contents(root)
    train, val = "images/training/000001.jpg", "images/validation/000001.jpg"
    assert len({other[train], other[val], first[train], first[val]}) == 4


def test_an_existing_set_is_not_written_again(root):
    def times():
        return {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    before = times()
    assert write_shapes(str(root), TRAIN, VAL, list(SIZE), SEED) == root
    assert times() == before


def test_an_empty_folder_is_filled(tmp_path):
    assert (write_shapes(tmp_path, 1, 1) / "shapes.json").is_file()


@pytest.mark.parametrize(
    "change", [{"num_train": 2}, {"num_val": 2}, {"size": (128, 128)}, {"seed": 3}]
)
def test_other_arguments_are_refused(tmp_path, change):
    arguments = {"num_train": 1, "num_val": 1, "size": SIZE, "seed": 0}
    write_shapes(tmp_path / "shapes", **arguments)
    before = contents(tmp_path)
    with pytest.raises(RAVLTError, match="other arguments.*delete it") as error:
        write_shapes(tmp_path / "shapes", **(arguments | change))
    assert str(tmp_path / "shapes") in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "shapes.json"])
def test_a_folder_with_other_files_is_refused(tmp_path, name):
    (tmp_path / name).write_text("not ours")
    with pytest.raises(RAVLTError, match="choose another folder or delete it"):
        write_shapes(tmp_path, 1, 1)
    assert contents(tmp_path) == {name: b"not ours"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "shapes").write_text("not ours")
    with pytest.raises(RAVLTError, match="choose another folder or delete it"):
        write_shapes(tmp_path / "shapes", 1, 1)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ravlt.data.shapes.dataset.draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "shapes", 1, 1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"num_train": 0}, "num_train"),
        ({"num_val": -1}, "num_val"),
        ({"size": (128, 63)}, "size"),
        ({"size": (128,)}, "size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, word):
    with pytest.raises(RAVLTError, match=word):
        write_shapes(tmp_path / "shapes", **arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["training", "validation"])
def test_annotations_equal_the_labels(root, split):
    coco = annotations(root, split)
    for image in coco.loadImgs(coco.getImgIds()):
        from_masks = np.ones(SIZE, np.uint8)
        covered = np.zeros(SIZE, int)
        for note in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask = coco.annToMask(note).astype(bool)
            covered += mask
            from_masks[mask] = note["category_id"] + 1
            assert note["area"] == mask.sum() >= 30
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            x, y, w, h = note["bbox"]
            assert (x, x + w - 1) == (columns[0], columns[-1])
            assert (y, y + h - 1) == (rows[0], rows[-1])
        assert covered.max() == 1
        # Polygons rasterise to exactly the mask, so that no tolerance is needed.
        np.testing.assert_array_equal(
            from_masks, labels(root, split, image["file_name"])
        )


def test_both_kinds_of_mask_occur_and_only_rle_for_crowds(root):
    notes = list(annotations(root, "training").anns.values())
    assert {bool(note["iscrowd"]) for note in notes} == {True, False}
    assert any(isinstance(note["segmentation"], list) for note in notes)
    for note in notes:
        if note["iscrowd"]:
            assert isinstance(note["segmentation"]["counts"], str)


def test_masks_with_holes_or_several_parts_are_exact():
    split = np.zeros((20, 30), bool)
    split[2:8, 0:5] = split[8:12, 5:9] = split[15:20, 20:30] = True
    polygons = _segmentation(Instance(0, split, False))
    # The first two parts touch at a corner and share one contour.
    assert isinstance(polygons, list) and len(polygons) == 2
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, 20, 30))
    np.testing.assert_array_equal(coco_mask.decode(rle), split)

    ring = split.copy()
    ring[16:18, 23:27] = False
    rle = _segmentation(Instance(0, ring, False))
    assert isinstance(rle["counts"], str)
    np.testing.assert_array_equal(coco_mask.decode(rle), ring)
