"""The commands of the training pages, run as they stand but with small models."""

import re
import shutil
from pathlib import Path

import pytest

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


def with_options(text: str, options: dict[str, str]) -> str:
    """Append the options of a config to the commands that train or test with it."""
    return TOOL.sub(lambda m: f"{m[1]} --cfg-options {options[m[2]]}", text)


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
            "palette": "[[i, i, i] for i in range(6)]",
            "first_value": "1",
            "max_epochs": "5",
        },
    }
    options = {
        "my_detector": f"{BACKBONE} {NECK} {SCALE.format('train', 2)} "
        f"{SCALE.format('val', 1)} {SCALE.format('test', 1)}",
        "my_segmentor": f"{BACKBONE} {NECK} 'model.data_preprocessor.size=(64,64)' "
        f"{SCALE.format('train', 2)} 'train_dataloader.dataset.pipeline.3.crop_size="
        f"(64,64)' {SCALE.format('val', 1)} {SCALE.format('test', 1)}",
    }

    def adapt(text: str) -> str:
        for name, lines in edits.items():
            if f"configs/own_data/{name}.py" in text and text.startswith("cp "):
                for key, value in lines.items():
                    text += f"sed -i 's/^{key} = .*/{key} = {value}/' "
                    text += f"configs/own_data/{name}.py\n"
        return with_options(text, options)

    run_page("own_data.md", checkout, ROOT, adapt)
    for name, metric, evaluations in (
        ("my_detector", "coco/bbox_mAP", 2),
        ("my_segmentor", "mIoU", 1),
    ):
        work = checkout / "work_dirs" / name
        records = read_scalars(work)
        assert sum(metric in line for line in records) == evaluations
        rates = [line["lr"] for line in records if "loss" in line]
        assert rates and max(rates) <= 1e-4 * 2 / 16  # scaled to two images
    assert len(list((checkout / "looks").glob("*.png"))) == 8
    assert list((checkout / "pictures").rglob("*.jpg"))
