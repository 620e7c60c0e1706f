"""The configs that the tests read, what their names say, and what the paper did."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmengine.config import Config
from running import ROOT

from ravlt.engine.config import load_config

PATHS = sorted(
    path
    for path in ROOT.glob("configs/**/*.py")
    if not {"_base_", "quickstart"} & set(path.parts)
)


def name_of(path: Path) -> str:
    return path.stem


def paths_of(part: str) -> list[Path]:
    return [path for path in PATHS if part in path.stem]


# {method}_ravlt-{size}[-linear][_{neck}][_{head}]_{training}_{dataset}[-{crop}]
NAME = re.compile(
    r"(?P<method>[a-z-]+)_ravlt-(?P<size>[tsbl])(?P<linear>-linear)?"
    r"(?:_(?P<neck>fpn))?(?:_(?P<head>4conv1fc-giou))?"
    r"_(?:(?P<gpus>\d+)xb(?P<batch>\d+)-)?(?P<ms_crop>ms-crop-)?"
    r"(?:(?P<epochs>[13])x|(?P<iters>\d+)k)"
    r"_(?P<dataset>coco|ade20k)(?:-(?P<crop>\d+x\d+))?"
)


@dataclass
class Recipe:
    """What the paper's runs did, copied from its repository, not from our configs."""

    lr: float
    weight_decay: float
    loss_scale: float | str | None  # None: fp32
    params: dict[str, int]  # millions, by size


RECIPES = {
    "retinanet": Recipe(1e-4, 1e-4, 512.0, dict(t=24, s=34, b=57, l=104)),
    "mask-rcnn": Recipe(1e-4, 0.05, "dynamic", dict(t=33, s=44, b=67, l=114)),
    "cascade-mask-rcnn": Recipe(1e-4, 0.05, "dynamic", dict(s=82, b=105, l=152)),
    "fpn": Recipe(1e-4, 1e-4, None, dict(t=18, s=28, b=51, l=98)),
    "upernet": Recipe(6e-5, 0.01, 512.0, dict(s=55, b=77, l=125)),
}


@dataclass
class Case:
    """A config, and what its name says."""

    path: Path
    cfg: Config
    name: dict[str, str | None]

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.name["method"]]


@cache
def load(path: Path) -> Config:
    """Read once for all files of tests, which must not change it."""
    return load_config(str(path))
