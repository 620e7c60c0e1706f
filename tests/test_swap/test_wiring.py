"""Everything that reads the backbone is given RAVLT-T's widths: 64, 128, 256, 512."""

import copy

import pytest
from mmdet.models.necks import NASFCOS_FPN

from helpers.swap_configs import (
    DEEPLAB,
    MASK2FORMER,
    OCRNET,
    QDTRACK,
    RETINANET,
    SEGFORMER,
    SOFT_TEACHER,
    at,
    load,
    swapped,
)
from ravlt import RAVLTError, swap_backbone
from ravlt.swap.trial import try_model

WANTED = {
    # A pyramid from stride 8 on: the first stage's output is not made.
    RETINANET: {
        "model.backbone.out_indices": (1, 2, 3),
        "model.neck.in_channels": [128, 256, 512],
        "model.neck.start_level": 0,
        "model.neck.num_outs": 5,
        "model.bbox_head.in_channels": 256,
    },
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py": {
        "model.neck.in_channels": [64, 128, 256, 512],
    },
    # A neck that reads the deepest first.
    "mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py": {
        "model.backbone.out_indices": (1, 2, 3),
        "model.neck.in_channels": [512, 256, 128],
        "model.neck.out_channels": [512, 256, 128],
    },
    "mmdet::yolox/yolox_s_8xb8-300e_coco.py": {
        "model.neck.in_channels": [128, 256, 512],
        "model.neck.out_channels": 128,
    },
    # One number, one level.
    "mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py": {
        "model.backbone.out_indices": (3,),
        "model.neck.in_channels": 512,
    },
    # One number behind four levels.
    "mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py": {
        "model.backbone.out_indices": (3,),
        "model.neck.in_channels": 512,
        "model.bbox_head.in_channels": 64,
    },
    # A neck that hands its input on to the heads.
    "mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py": {
        "model.backbone.out_indices": (2, 3),
        "model.neck.in_channels": (256, 512),
        "model.neck.out_channels": (256, 512, 512, 256, 256, 128),
        "model.bbox_head.in_channels": (256, 512, 512, 256, 256, 128),
    },
    "mmdet::detr/detr_r50_8xb2-150e_coco.py": {"model.neck.in_channels": [512]},
    "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py": {
        "model.neck.in_channels": [128, 256, 512],
    },
    MASK2FORMER: {"model.panoptic_head.in_channels": [64, 128, 256, 512]},
    # Heads without a neck, at stride 16: the stage of that stride.
    "mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py": {
        "model.backbone.out_indices": (2,),
        "model.rpn_head.in_channels": 256,
        "model.rpn_head.feat_channels": 2048,
        "model.roi_head.bbox_roi_extractor.out_channels": 256,
        "model.roi_head.bbox_head.in_channels": 256,
    },
    # Inside of wrappers.
    SOFT_TEACHER: {"model.detector.neck.in_channels": [64, 128, 256, 512]},
    QDTRACK: {
        "model.detector.neck.in_channels": [64, 128, 256, 512],
        "model.detector.init_cfg": None,
    },
    "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py": {
        "model.pretrained": None,
        "model.backbone.norm_cfg.type": "SyncBN",
        "model.decode_head.in_channels": [64, 128, 256, 512],
        "model.auxiliary_head.in_channels": 256,
        "model.auxiliary_head.in_index": 2,
    },
    SEGFORMER: {"model.decode_head.in_channels": [64, 128, 256, 512]},
    # The second stage is not read: the others move up.
    DEEPLAB: {
        "model.backbone.out_indices": (0, 2, 3),
        "model.decode_head.c1_in_channels": 64,
        "model.decode_head.in_channels": 512,
        "model.decode_head.in_index": 2,
        "model.auxiliary_head.in_channels": 256,
        "model.auxiliary_head.in_index": 1,
    },
    # A head that names three levels, and makes something of the last one only.
    "mmseg::encnet/encnet_r50-d8_4xb4-80k_ade20k-512x512.py": {
        "model.backbone.out_indices": (2, 3),
        "model.decode_head.in_channels": [512],
        "model.decode_head.in_index": (1,),
        "model.auxiliary_head.in_channels": 256,
        "model.auxiliary_head.in_index": 0,
    },
    # The same head behind a neck, which goes on giving all three levels.
    "mmseg::fastfcn/fastfcn_r50-d32_jpu_enc_4xb4-80k_ade20k-512x512.py": {
        "model.neck.in_channels": (128, 256, 512),
        "model.decode_head.in_channels": [128, 256, 2048],
        "model.decode_head.in_index": (0, 1, 2),
    },
    # A head without a layer that changes the width.
    "mmseg::segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512.py": {
        "model.backbone.out_indices": (2,),
        "model.decode_head.in_channels": 256,
        "model.decode_head.channels": 256,
    },
    # Two heads in a list; their own width stays.
    OCRNET: {
        "model.decode_head.0.in_channels": [64, 128, 256, 512],
        "model.decode_head.0.channels": 270,
        "model.decode_head.1.in_channels": [64, 128, 256, 512],
    },
    # A head inside of a head.
    "mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py": {
        "model.decode_head.kernel_generate_head.in_channels": 512,
        "model.decode_head.kernel_generate_head.in_index": 1,
        "model.decode_head.kernel_update_head.0.in_channels": 512,
        "model.auxiliary_head.in_index": 0,
    },
    # A neck that hands a level of the backbone to the auxiliary head.
    "mmseg::fastfcn/fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024.py": {
        "model.neck.in_channels": (128, 256, 512),
        "model.decode_head.in_channels": 2048,
        "model.auxiliary_head.in_channels": 256,
    },
}


@pytest.mark.integration
@pytest.mark.parametrize("name", WANTED, ids=lambda name: name.partition("/")[0])
def test_channels(name):
    cfg = swapped(name)
    found = {path: at(cfg, path) for path in WANTED[name]}
    assert found == WANTED[name]


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["NASFCOS_FPN", NASFCOS_FPN], ids=["name", "class"])
def test_a_neck_that_finds_levels_by_their_position(kind):
    """It gets all of them, and DDP is set to expect one without a gradient."""
    cfg = copy.deepcopy(load(RETINANET))
    cfg.model.neck = dict(
        type=kind,
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        num_outs=5,
        norm_cfg=dict(type="BN"),
    )
    new = swap_backbone(cfg, "test")
    assert new.model.neck.in_channels == [16, 32, 48, 64]
    assert "start_level" not in new.model.neck
    assert new.find_unused_parameters
    assert try_model(new, [128]).loss is not None


def test_other_sizes_and_attention():
    cfg = swap_backbone(load(RETINANET), "l", ["rala"] * 4)
    assert cfg.model.backbone.arch == "l"
    assert cfg.model.backbone.attn_types == ["rala"] * 4
    assert cfg.model.neck.in_channels == [192, 448, 640]
    narrow = dict(
        embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)
    )
    cfg = swap_backbone(load(RETINANET), narrow)
    assert cfg.model.neck.in_channels == [32, 64, 128]


@pytest.mark.parametrize("name", [SOFT_TEACHER, OCRNET, MASK2FORMER])
def test_the_given_config_is_untouched(name):
    cfg = copy.deepcopy(load(name))
    before = copy.deepcopy(cfg.to_dict())
    swap_backbone(cfg, pretrained="RAVLT_T.pth")
    assert cfg.to_dict() == before


def test_what_was_imported_before_stays():
    cfg = copy.deepcopy(load(RETINANET))
    cfg.custom_imports = dict(imports=["mine"], allow_failed_imports=True)
    assert swap_backbone(cfg).custom_imports == dict(
        imports=["mine", "ravlt"], allow_failed_imports=True
    )


def test_images_of_other_channels():
    cfg = copy.deepcopy(load(SEGFORMER))
    cfg.model.backbone.in_channels = 4
    cfg.model.data_preprocessor.update(mean=[1.0] * 4, std=[2.0] * 4)
    new = swap_backbone(cfg).model
    assert new.backbone.in_channels == 4
    assert new.data_preprocessor == cfg.model.data_preprocessor


def test_a_neck_that_ends_early():
    """Levels count from the first that is made."""
    cfg = copy.deepcopy(load(RETINANET))
    cfg.model.neck.update(add_extra_convs=False, end_level=2, num_outs=2)
    neck = swap_backbone(cfg).model.neck
    assert neck.in_channels == [128, 256, 512]
    assert (neck.start_level, neck.end_level) == (0, 1)


def test_a_neck_that_does_not_fit_is_told():
    cfg = copy.deepcopy(load(RETINANET))
    cfg.model.neck.in_channels = [1, 2, 3, 4]
    with pytest.raises(RAVLTError) as error:
        swap_backbone(cfg)
    assert str(error.value) == (
        "model.neck.in_channels=[1, 2, 3, 4] does not fit what the old backbone gives, "
        "[256, 512, 1024, 2048]; correct the config first."
    )
