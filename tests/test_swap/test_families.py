"""Models of the hosts' most common configs run with RAVLT and train all of it."""

import pytest

from helpers.swap_configs import load
from ravlt import swap_backbone
from ravlt.swap.trial import try_model

pytestmark = pytest.mark.integration

# The configs that people train most, and one of each kind of neck and head.
COMMON = [
    "mmdet::atss/atss_r50_fpn_1x_coco.py",
    "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py",
    "mmdet::yolox/yolox_s_8xb8-300e_coco.py",
    "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py",
    "mmseg::fastfcn/fastfcn_r50-d32_jpu_enc_4xb4-80k_ade20k-512x512.py",
    "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
    "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py",
    "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py",
]


@pytest.mark.parametrize("name", COMMON)
def test_the_swapped_model_runs(name):
    trial = try_model(swap_backbone(load(name), "test"), (128, 256))
    assert trial.loss is not None
    assert trial.idle == []
