"""Configs of the hosts, one of each kind that the swap treats differently."""

from functools import cache

from mmengine.config import Config

from ravlt.config import load_config
from ravlt.swap import swap_backbone

RETINANET = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
MASK2FORMER = "mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py"
SOFT_TEACHER = (
    "mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py"
)
QDTRACK = (
    "mmdet::qdtrack/"
    "qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py"
)
OCRNET = "mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py"
DEEPLAB = "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py"
SEGFORMER = "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"


@cache
def load(name: str) -> Config:
    """Read a config once; tests must not change it."""
    return load_config(name)


@cache
def swapped(name: str) -> Config:
    """Return the config with RAVLT-T as its backbone, from scratch."""
    return swap_backbone(load(name))


def at(cfg: Config, path: str):
    """Return the value at a dotted path."""
    node = cfg
    for key in path.split("."):
        node = node[int(key) if key.isdigit() else key]
    return node
