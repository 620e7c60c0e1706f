"""No damage to a data set passes unseen.

Whatever happens to a file: the check names it and training stops with one sentence or
skips the sample, or what is loaded equals an independent reading of the file.
"""

import copy
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from coco_faults import COCO_FAULTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from helpers.check_runs import runner_of
from helpers.image_faults import IMAGE_FAULTS, LABEL_FAULTS
from ravlt.data.check.problems import ERROR, KINDS
from ravlt.data.check.run import check_all_data, check_data, verify_images
from ravlt.data.shapes import write_shapes
from ravlt.data.shapes.dataset import CLASSES, SEG_CLASSES
from ravlt.errors import RAVLTError

TRAIN = "train_dataloader"
ALL_FAULTS = [
    *(("image", name) for name in IMAGE_FAULTS),
    *(("labels", name) for name in LABEL_FAULTS),
    *(("coco", name) for name in COCO_FAULTS),
]


def config_of(root: Path, detection: bool, **keys) -> Config:
    """A config whose pipelines only load."""
    loads = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
    if detection:
        loads[1].update(with_bbox=True, with_mask=True)
        dataset = dict(
            type="CocoDataset",
            ann_file="annotations/instances_training.json",
            data_prefix=dict(img="images/training/"),
            metainfo=dict(classes=CLASSES),
        )
    else:
        dataset = dict(
            type="BaseSegDataset",
            data_prefix=dict(
                img_path="images/training", seg_map_path="annotations/training"
            ),
            img_suffix=".jpg",
            seg_map_suffix=".png",
            reduce_zero_label=True,
            metainfo=dict(classes=SEG_CLASSES),
        )
    return Config(
        dict(
            default_scope="mmdet" if detection else "mmseg",
            work_dir=str(root / "work"),
            train_dataloader=dict(
                dataset=dict(**dataset, data_root=str(root), pipeline=loads)
            ),
        )
        | keys
    )


def damage(root: Path, part: str, name: str, seed: int) -> None:
    rng = random.Random(seed)
    if part == "coco":
        path = root / "annotations/instances_training.json"
        content = json.loads(path.read_text())
        COCO_FAULTS[name](content, rng)
        path.write_text(json.dumps(content))
    elif part == "image":
        IMAGE_FAULTS[name](root / f"images/training/00000{rng.randint(1, 3)}.jpg", rng)
    else:
        LABEL_FAULTS[name](
            root / f"annotations/training/00000{rng.randint(1, 3)}.png", rng
        )


def load(cfg: Config) -> tuple[list[dict], list[str]]:
    """Loads every sample as training would: those that load, and the refusals."""
    cfg = copy.deepcopy(cfg)
    loaded, refusals = [], []
    try:
        check_data(cfg, (TRAIN,))
    except RAVLTError as error:
        return [], [str(error)]
    runner = runner_of(cfg)
    verify_images(runner)
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        dataset = registry.build(runner._train_dataloader.dataset)
    for index in range(len(dataset)):
        try:
            results = dataset.prepare_data(index)
        except RAVLTError as error:
            refusals.append(str(error))
        else:
            loaded += [results] if results is not None else []
    return loaded, refusals


def assert_pixels(results: dict) -> None:
    image = ImageOps.exif_transpose(Image.open(results["img_path"])).convert("RGB")
    np.testing.assert_array_equal(results["img"][..., ::-1], np.asarray(image))


def assert_labels(results: dict) -> None:
    values = np.array(Image.open(results["seg_map_path"])).astype(int)
    expected = np.where((values == 0) | (values == 255), 255, values - 1)
    np.testing.assert_array_equal(results["gt_seg_map"], expected)
    assert set(np.unique(expected)) <= {*range(len(SEG_CLASSES)), 255}


def assert_objects(results: dict, content: dict) -> None:
    names = {record["id"]: record["name"] for record in content["categories"]}
    (image,) = (r for r in content["images"] if r.get("id") == results["img_id"])
    notes = [n for n in content["annotations"] if n.get("image_id") == image["id"]]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (n["bbox"] for n in notes)]
    np.testing.assert_array_equal(
        results["gt_bboxes"].tensor.numpy(), np.float32(boxes).reshape(-1, 4)
    )
    found = [CLASSES[label] for label in results["gt_bboxes_labels"]]
    assert found == [names[n["category_id"]] for n in notes]
    assert results["gt_ignore_flags"].tolist() == [n.get("iscrowd") == 1 for n in notes]
    coco = COCO()
    coco.imgs = {image["id"]: image}
    for mask, note in zip(results["gt_masks"].masks, notes, strict=True):
        np.testing.assert_array_equal(mask, coco.annToMask(note))


def assert_as_written(loaded: list[dict], problems: list) -> None:
    """What nothing was said of is as an independent reader has it."""
    named = {p.file for p in problems}
    for results in loaded:
        if results["img_path"] not in named:
            assert_pixels(results)
        if "gt_seg_map" in results and results["seg_map_path"] not in named:
            assert_labels(results)


def assert_coco_as_written(kept: list[dict], problems: list, path: Path) -> None:
    """The images without an error are there, those without a problem as written."""
    content = json.loads(path.read_text())
    errors = {p.file for p in problems if p.severity == ERROR}
    bad = {p.image for p in problems if p.severity == ERROR and p.file == str(path)}
    folder = str(path.parents[1] / "images/training/")
    sound = [
        image["id"]
        for image in content["images"]
        if type(image.get("id")) in (int, str)
        and image["id"] not in bad
        and os.path.join(folder, image["file_name"]) not in errors
    ]
    assert [results["img_id"] for results in kept] == sound
    problems = [p for p in problems if p.file == str(path) and p.kind != "image-empty"]
    doubted = {p.image for p in problems}
    for results in kept:
        if not doubted & {None, results["img_id"]}:
            assert_objects(results, content)


def try_out(root: Path, detection: bool) -> str:
    """Checks and loads a set; gives what became of its damage."""
    cfg = config_of(root, detection, model=dict(decode_head=dict(num_classes=6)))
    problems = check_all_data(cfg, jobs=0)
    for problem in problems:
        assert problem.kind in KINDS and "\n" not in str(problem)
    errors = {p.file for p in problems if p.severity == ERROR}
    loaded, refusals = load(cfg)
    assert bool(errors) == bool(refusals), (problems, refusals)
    for refusal in refusals:
        assert "\n" not in refusal and any(file in refusal for file in errors)
    assert_as_written(loaded, problems)

    cfg.bad_images = "skip"
    kept, refusals = load(cfg)
    assert_as_written(kept, problems)
    if refusals:  # nothing can be left out to mend the file
        return "stops"
    if detection:
        ann_file = root / cfg.train_dataloader.dataset.ann_file
        assert_coco_as_written(kept, problems, ann_file)
    else:
        used = {r["img_path"] for r in kept} | {r["seg_map_path"] for r in kept}
        assert not used & errors
    return "skips" if errors else "warns" if problems else "equal"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "s", 3, 1, (64, 80), 2)


def trial(sound: Path, folder: Path, damages: list[tuple[str, str, int]]) -> str:
    root = folder / "set"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(sound, root)
    for part, name, seed in damages:
        damage(root, part, name, seed)
    return try_out(root, damages[-1][0] != "labels")


@pytest.mark.parametrize("detection", [True, False])
def test_a_sound_set_is_equal(sound, detection):
    assert try_out(sound, detection) == "equal"


@pytest.mark.parametrize(("part", "name"), ALL_FAULTS)
def test_no_damage_passes_unseen(tmp_path, sound, part, name):
    trial(sound, tmp_path, [(part, name, 0)])


SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@FEW
@given(st.sampled_from(sorted(IMAGE_FAULTS)), st.sampled_from(ALL_FAULTS), SEEDS)
def test_nor_do_two(tmp_path_factory, sound, first, second, seed):
    damages = [("image", first, seed), (*second, seed + 1)]
    trial(sound, tmp_path_factory.getbasetemp(), damages)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "name"), ALL_FAULTS)
def test_every_damage_many_times(tmp_path, sound, part, name):
    trials = 20
    found = Counter(trial(sound, tmp_path, [(part, name, i)]) for i in range(trials))
    print(f"\n{part}: {name}: {dict(found)}")
    assert found.total() == trials
