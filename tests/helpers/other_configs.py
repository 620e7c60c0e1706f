"""The configs beyond the paper's, and their smallest runs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmdet.datasets import CocoPanopticDataset
from mmengine.config import Config, ConfigDict

from helpers.dataset_layouts import write_coco, write_semantic
from helpers.paper_configs import load, shrunken
from helpers.tool_runs import ROOT
from ravlt.models.archs import ARCHS

_SHRINK, _MULTIPLE = 16, 32  # what sides of images are divided by, and rounded up to
_SIZES = ("scale", "scales", "img_scale", "crop_size", "size", "max_size")


@dataclass(frozen=True)
class Leaf:
    """A pair of configs: with the released attention, and with RALA in all stages.

    Attributes:
        name: Folder and name, with a place for '-linear'.
        host: The config whose recipe it has, or whose data.
        write_data: Writes its data set to a folder.
        metric: What its evaluation reports.
    """

    name: str
    host: str
    write_data: Callable[[Path], None]
    metric: str

    def load(self, linear: bool) -> Config:
        """Return the config; tests must not change it."""
        name = self.name.format("-linear" if linear else "")
        return load(ROOT / f"configs/{name}.py")


write_coco_of_its_classes = partial(
    write_coco,
    classes=(
        *CocoPanopticDataset.METAINFO["thing_classes"],
        *CocoPanopticDataset.METAINFO["stuff_classes"],
    ),
    things=80,
)
# Over a config of a host.
OVER_HOSTS = [
    Leaf(
        "dino/dino-4scale_ravlt-t{}_8xb2-12e_coco",
        "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
        write_coco_of_its_classes,
        "coco/bbox_mAP",
    ),
    Leaf(
        "mask2former/mask2former_ravlt-t{}_8xb2-lsj-50e_coco",
        "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
        write_coco_of_its_classes,
        "coco/segm_mAP",
    ),
    Leaf(
        "mask2former/mask2former_ravlt-t{}_8xb2-lsj-50e_coco-panoptic",
        "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py",
        write_coco_of_its_classes,
        "coco_panoptic/PQ",
    ),
    Leaf(
        "mask2former/mask2former_ravlt-t{}_8xb2-160k_ade20k-512x512",
        "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
        partial(write_semantic, name="ade20k"),
        "mIoU",
    ),
    Leaf(
        "rtmdet/rtmdet_l_ravlt-t{}_4xb32-100e_coco",
        "mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py",
        write_coco_of_its_classes,
        "coco/bbox_mAP",
    ),
]
# With the paper's models and schedules, on other data.
ON_OTHER_DATA = [
    Leaf(
        "upernet/upernet_ravlt-t{}_4xb2-160k_cityscapes-1024x1024",
        "mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py",
        partial(write_semantic, name="cityscapes"),
        "mIoU",
    ),
    Leaf(
        "sem_fpn/fpn_ravlt-t{}_4xb2-80k_cityscapes-1024x1024",
        "mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py",
        partial(write_semantic, name="cityscapes"),
        "mIoU",
    ),
    Leaf(
        "sem_fpn/fpn_ravlt-t{}_4xb4-80k_loveda-512x512",
        "mmseg::hrnet/fcn_hr18_4xb4-80k_loveda-512x512.py",
        partial(write_semantic, name="loveda"),
        "mIoU",
    ),
    Leaf(
        "sem_fpn/fpn_ravlt-t{}_4xb4-80k_isaid-896x896",
        "mmseg::hrnet/fcn_hr18_4xb4-80k_isaid-896x896.py",
        partial(write_semantic, name="isaid"),
        "mIoU",
    ),
]
LEAVES = OVER_HOSTS + ON_OTHER_DATA


def smallest_run(cfg: Config) -> Config:
    """Return a copy that trains one step of a narrow model on small images."""
    cfg = copy.deepcopy(cfg)
    preprocessor = cfg.model.data_preprocessor
    _shrink_sizes(preprocessor)
    cfg.model = _shrink_model(cfg.model)
    cfg.model.data_preprocessor = preprocessor
    for name in ("train_dataloader", "val_dataloader"):
        loader = cfg[name]
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        _shrink_sizes(loader.dataset.pipeline)
    if "max_epochs" in cfg.train_cfg:
        cfg.train_cfg.max_epochs = 1
    else:
        cfg.train_cfg.max_iters = 1
    cfg.train_cfg.val_interval = 1
    cfg.train_cfg.pop("dynamic_intervals", None)
    return cfg


def _shrink_model(model: ConfigDict) -> ConfigDict:
    """Return a narrow copy, with few queries and layers."""
    if "in_index" in model.get("decode_head", {}):  # Semantic FPN and UperNet
        return shrunken(model)
    model = copy.deepcopy(model)
    model.backbone.update(arch="test", init_cfg=None)
    dims = ARCHS["test"]["embed_dims"]
    part = next(p for p in ("neck", "panoptic_head", "decode_head") if p in model)
    part = model[part]
    part.in_channels = [dims[i] for i in model.backbone.get("out_indices", range(4))]
    if model.type == "RTMDet":
        part.update(out_channels=32, num_csp_blocks=1)
        model.bbox_head.update(in_channels=32, feat_channels=32)
        part.norm_cfg.num_groups = model.bbox_head.norm_cfg.num_groups = 4
    elif model.type == "DINO":
        model.num_queries = model.test_cfg.max_per_img = 10
        model.encoder.num_layers = 1
        model.decoder.num_layers = 2
        model.dn_cfg.group_cfg.num_dn_queries = 4
    else:  # Mask2Former
        part.num_queries = 10
        part.pixel_decoder.encoder.num_layers = 1
        part.transformer_decoder.num_layers = 1
        (part if "train_cfg" in part else model).train_cfg.num_points = 64
    return model


def _shrink_sizes(node) -> None:
    """Divide the sizes of images in transforms and preprocessors."""
    for item in node if isinstance(node, list) else [node]:
        if isinstance(item, list):
            _shrink_sizes(item)
        elif isinstance(item, dict):
            for key, value in item.items():
                if key in _SIZES:
                    item[key] = _divided(value)
                elif isinstance(value, list):
                    _shrink_sizes(value)


def _divided(size):
    if isinstance(size, int):
        return -(-size // (_SHRINK * _MULTIPLE)) * _MULTIPLE
    return type(size)(_divided(side) for side in size)
