"""The configs of the paper's models, their names parsed, and the paper's recipes."""

import copy
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from helpers.tool_runs import ROOT
from ravlt.config import load_config
from ravlt.models.archs import ARCHS

CROP = (50, 61)  # image size of segmentors when a model runs

CONFIGS = sorted(
    path
    for path in ROOT.glob("configs/**/*.py")
    if not {"_base_", "own_data", "quickstart"} & set(path.parts)
)
# {method}_ravlt-{size}[-linear][_{neck}][_{head}]_{training}_{dataset}[-{crop}]
NAME = re.compile(
    r"(?P<method>[a-z-]+)_ravlt-(?P<size>[tsbl])(?P<linear>-linear)?"
    r"(?:_(?P<neck>fpn))?(?:_(?P<head>4conv1fc-giou))?"
    r"_(?:(?P<gpus>\d+)xb(?P<batch>\d+)-)?(?P<ms_crop>ms-crop-)?"
    r"(?:(?P<epochs>[13])x|(?P<iters>\d+)k)"
    r"_(?P<dataset>coco|ade20k)(?:-(?P<crop>\d+x\d+))?"
)
# The configs with a recipe of the paper.
PATHS = [path for path in CONFIGS if NAME.fullmatch(path.stem)]


def name_of(path: Path) -> str:
    return path.stem


def paths_of(part: str) -> list[Path]:
    return [path for path in PATHS if part in path.stem]


@dataclass
class Recipe:
    """Settings of the runs of the paper, copied from its repository."""

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
    """A config and the parts of its name."""

    path: Path
    cfg: Config
    name: dict[str, str | None]

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.name["method"]]


@cache
def load(path: Path) -> Config:
    """Read a config once for all test files; tests must not change it."""
    return load_config(str(path))


def shrunken(model: ConfigDict) -> ConfigDict:
    """Return a narrow copy of a model with few boxes and no score threshold."""
    model = copy.deepcopy(model)
    _narrow(model)
    model.backbone.update(arch="test", init_cfg=None)
    dims = ARCHS["test"]["embed_dims"]
    outputs = [dims[i] for i in model.backbone.get("out_indices", range(4))]
    if "neck" in model:
        model.neck.in_channels = outputs
    else:
        model.decode_head.in_channels = outputs
    if "auxiliary_head" in model:
        model.auxiliary_head.in_channels = outputs[model.auxiliary_head.in_index]
    if "size" in model.data_preprocessor:
        model.data_preprocessor.size = CROP
    if "bbox_head" in model:
        model.test_cfg.score_thr = 0.0
    if "roi_head" in model:
        model.train_cfg.rpn_proposal.max_per_img = 50
        stages = model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16
        model.test_cfg.rpn.max_per_img = 20
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    return model


def _narrow(node) -> None:
    """Divide every width of neck and heads by 8."""
    if isinstance(node, list):
        for item in node:
            _narrow(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key.endswith("channels") and isinstance(value, int):
                node[key] = value // 8
            elif key.endswith("channels"):
                node[key] = [width // 8 for width in value]
            else:
                _narrow(value)


def make_inputs(dataset: str) -> dict:
    """Return two small annotated images, sides not divisible by 32."""
    if dataset == "coco":
        shapes = [(3, 60, 90), (3, 64, 75)]
        return demo_mm_inputs(2, shapes, num_classes=80, with_mask=True)
    generator = torch.Generator().manual_seed(0)
    height, width = CROP
    samples = []
    for _ in range(2):
        labels = torch.randint(0, 150, (1, height, width), generator=generator)
        meta = dict(img_shape=(height, width), ori_shape=(height, width))
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    images = torch.randint(0, 256, (2, 3, height, width), generator=generator)
    return dict(inputs=list(images.to(torch.uint8)), data_samples=samples)


def flat_tensors(nested) -> list[Tensor]:
    """Return the tensors inside nested lists and tuples, in order."""
    if isinstance(nested, Tensor):
        return [nested]
    return [tensor for item in nested for tensor in flat_tensors(item)]
