"""The commands of the training pages, run as they stand but with small models."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.dataset_layouts import write_semantic
from helpers.other_configs import write_coco_of_its_classes
from helpers.pages import run_page
from helpers.tool_runs import ROOT, read_scalars
from ravlt.data.shapes import write_shapes

pytestmark = pytest.mark.integration

TOOL = re.compile(r"^(python tools/(?:train|test)\.py \S+/([^/\s]+)\.py.*)$", re.M)
BACKBONE = "model.backbone.arch=test model.backbone.init_cfg=None"
NECK = "'model.neck.in_channels=[16,32,48,64]'"
SCALE = "{}_dataloader.dataset.pipeline.{}.scale='(160,128)'"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder in which the commands of a page find tools/ and configs/."""
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path


def adapt_to(
    options: dict[str, str], *replacements: tuple[str, str]
) -> Callable[[str], str]:
    """Return a function that changes the commands of a page.

    Args:
        options: What to append to the commands that train or test with a config, by its
            name.
        *replacements: Pairs of old and new text.
    """

    def adapt(text: str) -> str:
        for old, new in replacements:
            text = text.replace(old, new)
        return TOOL.sub(lambda m: f"{m[1]} --cfg-options {options[m[2]]}", text)

    return adapt


DETECTOR = (
    f"{BACKBONE} {NECK} {SCALE.format('train', 2)} {SCALE.format('val', 1)} "
    f"{SCALE.format('test', 1)} train_dataloader.num_workers=0 "
    "train_dataloader.persistent_workers=False model.test_cfg.rcnn.score_thr=0.0"
)
SEGMENTOR = (
    f"{BACKBONE} {NECK} 'model.data_preprocessor.size=(64,64)' "
    f"{SCALE.format('train', 2)} "
    "'train_dataloader.dataset.pipeline.3.crop_size=(64,64)' "
    f"{SCALE.format('val', 1)} {SCALE.format('test', 1)} "
    "train_dataloader.num_workers=0 train_dataloader.persistent_workers=False"
)


def test_coco(checkout):
    """From the check of the data to the evaluation, by way of a resumed run."""
    write_coco_of_its_classes(checkout / "data/coco")
    name = "mask-rcnn_ravlt-t_fpn_1x_coco"
    adapt = adapt_to(
        {name: f"{DETECTOR} train_cfg.max_epochs=2"}, ("epoch_12", "epoch_2")
    )
    out = run_page("train_coco.md", checkout, ROOT, adapt)
    assert "0 errors" in out
    work = checkout / "work_dirs" / name
    assert (work / "epoch_2.pth").is_file() and (work / "curves.png").is_file()
    assert "resumed after iteration 2" in out  # of one pair of images an epoch
    assert f"--data-root {checkout}/data/coco, as recorded in" in out
    metrics = [line for line in read_scalars(work) if "coco/bbox_mAP" in line]
    assert len(metrics) == 3  # two epochs, and test.py
    assert list((checkout / "pictures").rglob("*.jpg"))
    assert (checkout / "predictions.pkl").is_file()


def test_ade20k(checkout):
    write_semantic(checkout / "data/ade/ADEChallengeData2016", "ade20k")
    name = "fpn_ravlt-t_8xb2-80k_ade20k-512x512"
    length = "train_cfg.max_iters=4 train_cfg.val_interval=2 "
    length += "default_hooks.checkpoint.interval=2 train_dataloader.batch_size=2"
    adapt = adapt_to({name: f"{SEGMENTOR} {length}"}, ("iter_80000", "iter_4"))
    out = run_page("train_ade20k.md", checkout, ROOT, adapt)
    assert "0 errors" in out
    work = checkout / "work_dirs" / name
    assert (work / "iter_4.pth").is_file() and (work / "curves.png").is_file()
    assert "resumed after iteration 4" in out
    assert len(list((checkout / "predictions").glob("*.png"))) == 2


def test_own_data(checkout):
    """Both copies of a config, with only the lines changed that the page names."""
    data = write_shapes(checkout / "shapes", 8, 4, (64, 64), 0)
    mine = checkout / "data/mine"
    for kind, source in (("images", data / "images"), ("masks", data / "annotations")):
        (mine / kind).mkdir(parents=True)
        for short, split in (("train", "training"), ("val", "validation")):
            (mine / kind / short).symlink_to(source / split)
    (mine / "annotations").mkdir()
    for short, split in (("train", "training"), ("val", "validation")):
        (mine / short).symlink_to(data / "images" / split)
        file = mine / f"annotations/instances_{short}.json"
        file.symlink_to(data / f"annotations/instances_{split}.json")
    shapes = '"disk", "square", "triangle", "star", "cross"'
    edits = {
        "my_detector": {"classes": f"({shapes})", "max_epochs": "2"},
        "my_segmentor": {
            "classes": f'("background", {shapes})',
            "first_value": "1",
            "max_epochs": "5",
        },
    }
    adapt = adapt_to({"my_detector": DETECTOR, "my_segmentor": SEGMENTOR})

    def edit(text: str) -> str:
        for name, lines in edits.items():
            if f"configs/own_data/{name}.py" in text and text.startswith("cp "):
                for key, value in lines.items():
                    text += f"sed -i 's/^{key} = .*/{key} = {value}/' "
                    text += f"configs/own_data/{name}.py\n"
        return adapt(text)

    run_page("own_data.md", checkout, ROOT, edit)
    for name, metric, evaluations in (
        ("my_detector", "coco/bbox_mAP", 2),
        ("my_segmentor", "mIoU", 1),
    ):
        work = checkout / "work_dirs" / name
        records = read_scalars(work)
        assert sum(metric in line for line in records) == evaluations
        rates = [line["lr"] for line in records if "loss" in line]
        assert rates and max(rates) == pytest.approx(
            1e-4 * 2 / 16
        )  # scaled to two images
    assert len(list((checkout / "looks").glob("*.png"))) == 8
    assert list((checkout / "pictures").rglob("*.jpg"))
