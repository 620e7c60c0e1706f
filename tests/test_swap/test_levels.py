"""Backbones and necks tell themselves what they give."""

import pytest
from mmengine.config import Config

from helpers.swap_configs import load
from ravlt import RAVLTError, swap_backbone
from ravlt.swap.levels import Backbone, Level, ask_backbone, ask_reader
from ravlt.swap.sites import Site
from ravlt.swap.stages import match_stages

RESNET = dict(type="ResNet", depth=50)


def ask(backbone: dict, scope: str = "mmdet") -> Backbone:
    return ask_backbone(Site(dict(backbone=backbone), ("model",)), scope)


def levels(*pairs: tuple[int, int]) -> tuple[Level, ...]:
    return tuple(Level(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("scope", "cfg", "expected"),
    [
        ("mmdet", RESNET, [(256, 4), (512, 8), (1024, 16), (2048, 32)]),
        (
            "mmseg",
            dict(RESNET, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
            [(256, 4), (512, 8), (1024, 8), (2048, 8)],
        ),
        # This one looks at numbers while it is built.
        ("mmdet", dict(type="SwinTransformer"), [(96, 4), (192, 8), (384, 16)]),
        ("mmdet", dict(type="Darknet", depth=53), [(256, 8), (512, 16), (1024, 32)]),
        ("mmseg", dict(type="MixVisionTransformer"), [(64, 4), (128, 8), (256, 16)]),
    ],
)
def test_levels_of_backbones(scope, cfg, expected):
    found = ask(cfg, scope).levels
    assert found[: len(expected)] == levels(*expected)


def test_weights_and_synchronised_norms_are_left_out():
    cfg = dict(
        RESNET,
        norm_cfg=dict(type="SyncBN"),
        init_cfg=dict(type="Pretrained", checkpoint="no/such.pth"),
    )
    backbone = ask(cfg)
    assert len(backbone.levels) == 4
    assert "layer4.2.conv3.weight" in backbone.parameters


def test_levels_of_a_neck():
    cfg = dict(type="FPN", in_channels=[8, 16], out_channels=4, num_outs=3)
    found = ask_reader(cfg, "mmdet", levels((8, 8), (16, 16)))
    assert found == levels((4, 8), (4, 16), (4, 32))


@pytest.mark.parametrize(
    ("pairs", "stages"),
    [
        ([(1, 4), (2, 8), (3, 16), (4, 32)], (0, 1, 2, 3)),
        ([(1, 8), (2, 16), (3, 32)], (1, 2, 3)),
        ([(1, 16), (2, 32)], (2, 3)),
        ([(1, 16)], (2,)),
        # Dilated: as deep.
        ([(1, 4), (2, 8), (3, 8), (4, 8)], (0, 1, 2, 3)),
        ([(1, 8), (2, 8), (3, 16)], (1, 2, 3)),
    ],
)
def test_stages(pairs, stages):
    assert match_stages(levels(*pairs), "Some") == stages


@pytest.mark.parametrize(
    "pairs",
    [[(16, 2), (16, 4), (960, 8)], [(1, 8), (2, 16), (3, 32), (4, 64)], [(1, 2)]],
)
def test_strides_out_of_reach(pairs):
    with pytest.raises(RAVLTError) as error:
        match_stages(levels(*pairs), "Some")
    strides = [stride for _, stride in pairs]
    assert str(error.value) == (
        f"The backbone Some gives strides {strides}, and RAVLT has [4, 8, 16, 32]; "
        f"choose a config whose neck or heads take some of these."
    )


def test_channels_that_fall():
    """A decoder inside of the backbone, its maps in the usual order."""
    with pytest.raises(RAVLTError, match="is no pyramid from fine to deep"):
        match_stages(levels((64, 4), (32, 8)), "Some")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py",
            "model.roi_head.shared_head (ResLayer) is the last stage of the old "
            "backbone (a C4 head), which RAVLT cannot give; choose the config of the "
            "same method with an FPN.",
        ),
        (
            "mmdet::ssd/ssd300_coco.py",
            "model.backbone is SSDVGG, whose last layers are the first of SSD's head; "
            "choose ssdlite or RetinaNet.",
        ),
        (
            "mmdet::detectors/detectors_cascade-rcnn_r50_1x_coco.py",
            "model.neck (RFP) runs copies of the old backbone on its own output",
        ),
        (
            "mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py",
            "The backbone HourglassNet gives 2 maps of one stride (4)",
        ),
        (
            "mmseg::dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py",
            "The backbone VisionTransformer gives something else than feature maps",
        ),
        (
            "mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py",
            "The backbone UNet gives maps of strides [16, 8, 4, 2, 1] and channels "
            "[1024, 512, 256, 128, 64], which is no pyramid from fine to deep",
        ),
        (
            "mmseg::ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py",
            "model.decode_head is a cascade on one grid of the old, dilated backbone, "
            "and RAVLT gives its levels at strides [16, 32];",
        ),
        (
            "mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py",
            "The backbone PIDNet gives 3 maps of one stride (8)",
        ),
    ],
    ids=lambda value: value.partition("/")[0],
)
def test_refusals(name, message):
    with pytest.raises(RAVLTError) as error:
        swap_backbone(load(name))
    assert str(error.value).startswith(message)
    assert "; choose" in str(error.value)


def test_branches_are_refused():
    cfg = load("mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py")
    with pytest.raises(RAVLTError, match="several maps for one image"):
        ask(cfg.model.backbone)


def test_a_backbone_that_cannot_be_built():
    with pytest.raises(RAVLTError) as error:
        ask(dict(type="mmpretrain.NoSuchNet"))
    assert str(error.value).startswith(
        "The backbone NoSuchNet cannot run here, so that what it gives is not known ("
    )


def test_a_config_without_a_backbone():
    with pytest.raises(RAVLTError, match="no model with a backbone to swap; give"):
        swap_backbone(Config(dict(default_scope="mmseg")))


def test_a_config_of_another_library():
    cfg = Config(dict(default_scope="mmpretrain", model=dict(backbone=dict(type="X"))))
    with pytest.raises(RAVLTError, match="default_scope='mmpretrain' is neither"):
        swap_backbone(cfg)
