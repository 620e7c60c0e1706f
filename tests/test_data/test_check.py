"""Checks that the random damage of test_faults.py does not single out."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from helpers.image_faults import bomb, encode, exif
from helpers.tool_runs import DET, SEG, Run, train
from ravlt.config import LOADERS
from ravlt.data.check import image_file
from ravlt.data.check.coco import Use, check_coco, read_coco
from ravlt.data.check.dataset import build_bare, is_coco, use_of
from ravlt.data.check.image_file import BadFile, read_header
from ravlt.data.check.label_file import LabelRule
from ravlt.data.check.masks import run_lengths
from ravlt.data.check.problems import KINDS, Problem, report_lines
from ravlt.data.check.run import check_all_data, check_data
from ravlt.data.shapes.dataset import CLASSES
from ravlt.errors import RAVLTError


def test_run_lengths_are_pycocotools():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 0.99, 1):
        mask = np.asfortranarray(rng.random((300, 200)) < share, np.uint8)
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat, prepend=0))
        expected = np.diff(edges, prepend=0, append=flat.size)
        code = coco_mask.encode(mask)["counts"].decode()
        np.testing.assert_array_equal(run_lengths(code), expected)


@pytest.mark.parametrize("side", [10_000, 20_000, 60_000])
def test_bombs_are_told_from_the_header(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", None)  # nothing is decoded
    with pytest.raises(BadFile, match="decompression bomb"):
        read_header(bomb(side))


def test_huge_honest_images_are_no_bombs():
    data = bomb(10_000) + bytes(3 * 10**8 // image_file._BOMB_RATIO)
    assert read_header(data).size == (10_000, 10_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_upright_size(kind):
    for orientation in range(1, 9):
        image = Image.new("RGB", (30, 20))
        header = read_header(encode(image, kind, exif=exif(orientation)))
        assert header.upright == ((30, 20) if orientation > 4 else (20, 30))


def test_classes_of_label_values():
    assert LabelRule().classes().tolist() == list(range(256))
    reduced = LabelRule(reduce_zero_label=True).classes()
    assert reduced[[0, 1, 2, 254, 255]].tolist() == [255, 0, 1, 253, 255]
    mapped = LabelRule(label_map={0: 1, 1: 0, 2: 255}).classes()
    assert mapped[:4].tolist() == [1, 0, 255, 3]


def kinds(root: Path, use: Use, **changes) -> set[str]:
    path = str(root / "annotations/instances_training.json")
    content = read_coco(path) | changes
    return {problem.kind for problem in check_coco(content, path, use)}


def test_what_a_config_makes_of_a_file(root):
    assert kinds(root, Use(CLASSES)) == set()
    assert kinds(root, Use(CLASSES[:3])) == {"class-unused"}
    assert kinds(root, Use((*CLASSES, "cat"))) == {"class-absent"}
    assert kinds(root, Use(CLASSES[::-1])) == {"class-order"}
    assert kinds(root, Use(("cat", *CLASSES))) == {"class-order", "class-absent"}
    assert kinds(root, Use(CLASSES, min_size=200)) == {"image-small"}
    found = {"nothing", "image-empty", "class-absent", "class-unused"}
    assert kinds(root, Use(("cat",))) == found
    # A test set without truth is sound, a training set is not.
    assert kinds(root, Use(CLASSES, training=False), annotations=[]) == {"image-empty"}
    assert "nothing" in kinds(root, Use(CLASSES), annotations=[])


@pytest.mark.parametrize(
    "classes", [CLASSES[::-1], ("cat", *CLASSES), (*CLASSES[2:], "dog", CLASSES[0])]
)
def test_wrong_class_order_names_the_right_one(root, classes):
    """The line can be pasted, and then the host's labels stand for the right names."""
    ann_file = str(root / "annotations/instances_training.json")
    dataset = dict(type="CocoDataset", ann_file=ann_file)
    dataset["data_prefix"] = dict(img=str(root / "images/training"))
    dataset["metainfo"] = dict(classes=classes)
    cfg = Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dataset)))
    with pytest.raises(RAVLTError, match="label 0 is") as refused:
        check_data(cfg, LOADERS[:1])
    (line,) = re.findall(r"metainfo=(dict\(classes=\(.*?\)\))", str(refused.value))
    cfg.train_dataloader.dataset.metainfo = eval(line)
    check_data(cfg, LOADERS[:1])
    with DATASETS.switch_scope_and_registry("mmdet") as registry:
        built = registry.build(cfg.train_dataloader.dataset)
    assert sorted(built.metainfo["classes"]) == sorted(classes)
    coco, instances = COCO(ann_file), 0
    for info in map(built.get_data_info, range(len(built))):
        notes = coco.imgToAnns[info["img_id"]]
        names = [coco.cats[note["category_id"]]["name"] for note in notes]
        labels = [found["bbox_label"] for found in info["instances"]]
        expected = [name for name in names if name in classes]
        assert [built.metainfo["classes"][label] for label in labels] == expected
        instances += len(labels)
    assert instances > 10


def test_evaluation_needs_more(root):
    path = root / "annotations/instances_training.json"
    notes = json.loads(path.read_text())["annotations"]
    notes[0]["id"] = 0
    del notes[1]["iscrowd"]
    assert kinds(root, Use(CLASSES), annotations=notes) == set()
    evaluated = kinds(root, Use(CLASSES, training=False), annotations=notes)
    assert evaluated == {"id-zero", "record"}


def test_report():
    problems = [Problem("warning", "image-alpha", f"{i}.png") for i in range(12)]
    problems.append(Problem("error", "bad-file", "a.jpg", "it is empty"))
    lines = list(report_lines(problems))
    assert lines[0] == f"error: 1 x bad-file ({KINDS['bad-file']})"
    assert lines[1] == "  a.jpg: it is empty"
    assert lines[2].startswith("warning: 12 x image-alpha (")
    assert lines[3] == "  0.png" and lines[-1] == "  and 2 more" and len(lines) == 14


@pytest.fixture
def data(tmp_path, shapes) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "copy"))


def test_every_loader_through_wrappers_once(data):
    (data / "images/validation/000002.jpg").write_bytes(b"")
    (data / "images/training/000001.jpg").write_bytes(b"")
    (data / "images/training/other.jpeg").write_bytes(b"")
    cfg = Config.fromfile(SEG)
    for name in ("train", "val", "test"):
        cfg[f"{name}_dataloader"].dataset.data_root = str(data)
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=inner)
    found = [(p.kind, Path(p.file).name) for p in check_all_data(cfg, jobs=1)]
    assert found == [
        ("image-unlisted", "other.jpeg"),
        ("bad-file", "000001.jpg"),
        ("bad-file", "000002.jpg"),
    ]


def spoil_annotations(data: Path) -> Path:
    path = data / "annotations/instances_training.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = -5
    path.write_text(json.dumps(content))
    return path


@pytest.mark.integration
def test_the_tool(tmp_path, data):
    path = spoil_annotations(data)
    line = [DET, "--data-root", data, "--out", "report.json"]
    run = Run("misc/check_dataset.py", line, tmp_path)
    assert run.wait() == 1
    assert "error: 1 x box (" in run.out and f"  {path}: annotation 1 of " in run.out
    assert run.out.endswith("1 errors, 0 warnings\n")
    (record,) = json.loads((tmp_path / "report.json").read_text())
    assert (record["severity"], record["kind"], record["image"]) == ("error", "box", 1)


@pytest.mark.integration
def test_training_with_bad_annotations(tmp_path, data):
    path = spoil_annotations(data)
    refused = train(tmp_path / "a", "--data-root", data, config=DET).error()
    assert refused.startswith(f"error: Cannot use '{path}': annotation 1 of image 1 (")
    assert refused.endswith("without such images by bad_images='skip'.")
    options = {"bad_images": "skip"}
    run = train(tmp_path / "b", "--data-root", data, config=DET, options=options)
    run.succeeded()
    assert "Skipped 1 of 16 images for their annotations: " in run.out + run.err
    (copy,) = (tmp_path / "b/work").glob("sound_*.json")
    assert [r["id"] for r in json.loads(copy.read_text())["images"]] == [*range(2, 17)]


def test_data_sets_of_other_libraries_are_no_coco():
    assert not is_coco(torch.utils.data.TensorDataset(torch.zeros(1)))


def test_images_without_annotations_are_for_semi_supervised_training(root):
    """mmdet has such a file for its Soft Teacher."""
    empty = dict(annotations=[])
    assert "nothing" in kinds(root, Use(CLASSES), **empty)
    assert "nothing" not in kinds(root, Use(CLASSES, labels=False), **empty)
    file = str(root / "annotations/instances_training.json")
    bare = build_bare(dict(type="CocoDataset", ann_file=file), "mmdet")
    for step, labels in (("LoadAnnotations", True), ("LoadEmptyAnnotations", False)):
        config = dict(pipeline=[dict(type="LoadImageFromFile"), dict(type=step)])
        assert use_of(bare, config, training=True).labels is labels
