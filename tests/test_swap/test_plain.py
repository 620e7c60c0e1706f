"""Plain vision transformers: their neck goes, stays, or a resizing one is added."""

import copy

import pytest

from helpers.swap_configs import at, load
from ravlt import swap_backbone
from ravlt.swap import leaf_config, plan_swap
from ravlt.swap.levels import Level
from ravlt.swap.plain import view_as_pyramid
from ravlt.swap.sites import Site
from ravlt.swap.trial import try_model

VIT = "mmseg::vit/vit_vit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512.py"
NO_NECK = "mmseg::vit/vit_deit-s16_upernet_8xb2-160k_ade20k-512x512.py"
BEIT = "mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py"
MAE = "mmseg::mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py"
NAIVE = "mmseg::setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512.py"
MLA = "mmseg::setr/setr_vit-l_mla_8xb2-160k_ade20k-512x512.py"

PLAIN = (Level(8, 16),) * 4
FCN = dict(type="FCNHead", in_channels=8, in_index=3, channels=4, num_classes=2)
UPERNET = dict(
    type="UPerHead",
    in_channels=[8] * 4,
    in_index=[0, 1, 2, 3],
    channels=4,
    num_classes=2,
)
MLA_HEAD = dict(
    type="SETRMLAHead",
    in_channels=[8] * 4,
    in_index=[0, 1, 2, 3],
    channels=16,
    mla_channels=4,
    num_classes=2,
)
ENLARGE = dict(FCN, type="SETRUPHead", kernel_size=1, up_scale=4)
PYRAMID_NECK = dict(
    type="MultiLevelNeck", in_channels=[8] * 4, out_channels=6, scales=[4, 2, 1, 0.5]
)
SUM_NECK = dict(type="MLANeck", in_channels=[8] * 4, out_channels=8)
RESIZE = dict(
    type="MultiLevelNeck",
    in_channels=[8] * 4,
    out_channels=8,
    scales=[0.25, 0.5, 1.0, 2.0],
)


def view(levels=PLAIN, scope="mmseg", **owner):
    site = Site(dict(backbone=dict(type="ViT"), **owner), ("model",))
    return view_as_pyramid(site, scope, levels)


def pairs(levels) -> list[tuple[int, int]]:
    return [(level.channels, level.stride) for level in levels]


def test_a_neck_that_only_makes_a_pyramid_is_taken_out():
    found = view(neck=PYRAMID_NECK, decode_head=dict(UPERNET, in_channels=[6] * 4))
    assert list(found.site.necks()) == []
    assert pairs(found.levels) == [(6, 4), (6, 8), (6, 16), (6, 32)]
    [change] = found.changes
    assert (change.path, change.value) == (("model", "neck"), None)
    assert found.warnings == (
        "model.neck (MultiLevelNeck) is taken out: it resized the maps of ViT, all of "
        "stride 16, to strides [4, 8, 16, 32], which RAVLT gives itself.",
    )


def test_heads_that_run_on_a_pyramid_keep_their_places():
    found = view(decode_head=UPERNET, auxiliary_head=[FCN, dict(FCN, in_index=0)])
    assert pairs(found.levels) == [(8, 4), (8, 8), (8, 16), (8, 32)]
    assert found.changes == ()
    assert found.warnings == (
        "ViT gave 4 maps of stride 16, RAVLT gives strides [4, 8, 16, 32] in their "
        "place, on which the heads run, too.",
    )


@pytest.mark.parametrize(
    ("owner", "necks"),
    [
        (dict(decode_head=MLA_HEAD), [RESIZE]),
        (dict(neck=SUM_NECK, decode_head=MLA_HEAD), [RESIZE, SUM_NECK]),
        # Four times as large as RAVLT's finest map is as large as the image.
        (dict(decode_head=FCN, auxiliary_head=dict(ENLARGE, in_index=0)), [RESIZE]),
        # One of the heads is enough.
        (dict(decode_head=FCN, auxiliary_head=MLA_HEAD), [RESIZE]),
    ],
    ids=["head", "neck", "large head", "auxiliary head"],
)
def test_parts_that_join_maps_of_one_stride_get_them(owner, necks):
    found = view(**owner)
    assert [neck for neck, _ in found.site.necks()] == necks
    [change] = found.changes
    assert (change.path, change.value) == (("model", "neck"), necks)
    [warning] = found.warnings
    assert warning == (
        "model.neck begins with a MultiLevelNeck, which resizes RAVLT's strides [4, 8, "
        "16, 32] to stride 16, as ViT gave them: the model cannot take other "
        "strides, or only at a high cost."
    )


def test_heads_that_enlarge_coarse_maps_get_them():
    found = view(decode_head=ENLARGE, auxiliary_head=dict(ENLARGE, in_index=2))
    assert found.changes == ()
    assert pairs(found.levels)[3] == (8, 32)


@pytest.mark.parametrize(
    "levels",
    [
        (Level(8, 16),),
        (Level(8, 4),) * 2,  # stacked hourglasses
        (Level(4, 8), Level(8, 8), Level(8, 8), Level(8, 8)),  # dilated
        (Level(8, 4), Level(8, 8), Level(8, 16), Level(8, 32)),
    ],
)
def test_other_backbones_are_left_alone(levels):
    found = view(levels, neck=PYRAMID_NECK, decode_head=UPERNET)
    assert found.levels == levels
    assert (found.changes, found.warnings) == ((), ())


def test_detectors_read_levels_of_one_width():
    """Their heads cannot take RAVLT's levels without the neck."""
    found = view(scope="mmdet", bbox_head=dict(type="RetinaHead", in_channels=8))
    assert found.levels == PLAIN


WANTED = {
    VIT: {
        "model.neck": None,
        "model.backbone.type": "RAVLT",
        "model.decode_head.in_channels": [64, 128, 256, 512],
        "model.auxiliary_head.in_channels": 512,
    },
    NO_NECK: {
        "model.decode_head.in_channels": [64, 128, 256, 512],
        "model.auxiliary_head.in_channels": 512,
    },
    BEIT: {
        "model.neck": None,
        "model.decode_head.in_channels": [64, 128, 256, 512],
        "model.auxiliary_head.in_channels": 256,
    },
    NAIVE: {
        "model.neck.0.in_channels": [64, 128, 256, 512],
        "model.decode_head.in_channels": 1024,
        "model.auxiliary_head.0.in_channels": 1024,
    },
    MLA: {
        "model.neck.0.in_channels": [64, 128, 256, 512],
        "model.neck.0.out_channels": 1024,
        "model.neck.1.type": "MLANeck",
        "model.neck.1.in_channels": [1024] * 4,
        "model.decode_head.in_channels": (256,) * 4,
    },
}


@pytest.mark.integration
@pytest.mark.parametrize("name", WANTED, ids=lambda name: name.partition("/")[0])
def test_shipped_configs(name):
    cfg = swap_backbone(load(name))
    assert {path: at(cfg, path) for path in WANTED[name]} == WANTED[name]


def narrow(name: str):
    """Return a shipped config with small necks and heads, whose trial is fast."""
    cfg = copy.deepcopy(load(name))
    model = cfg.model
    model.data_preprocessor.size = (64, 64)
    model.backbone.update(embed_dims=96, num_layers=4, num_heads=3)
    model.backbone.out_indices = (0, 1, 2, 3)
    for key in ("embed_dim", "in_channels", "out_channels"):
        if key in (model.get("neck") or {}):
            wide = isinstance(model.neck[key], list)
            model.neck[key] = [96] * 4 if wide else 96
    auxiliary = model.auxiliary_head
    several = isinstance(auxiliary, list)
    for head in (model.decode_head, *(auxiliary if several else [auxiliary])):
        wide = isinstance(head.in_channels, list | tuple)
        head.update(in_channels=[96] * 4 if wide else 96, channels=96)
        if "mla_channels" in head:
            head.mla_channels = 24
    return cfg


@pytest.mark.integration
@pytest.mark.parametrize("name", [VIT, NO_NECK, BEIT, NAIVE, MLA])
def test_swapped_models_predict_and_train_all_of_ravlt(name):
    trial = try_model(swap_backbone(narrow(name), "test"), [64])
    assert trial.loss > 0
    assert trial.idle == []


@pytest.mark.integration
def test_the_swap_says_what_became_of_the_neck():
    """In its warnings, and beside the setting in the written config."""
    original = load(VIT)
    swap = plan_swap(original)
    assert swap.warnings[0].startswith("model.neck (MultiLevelNeck) is taken out: ")
    text = leaf_config(VIT, original, swap.apply(original), swap)
    assert "# Note: model.neck (MultiLevelNeck) is taken out: it resized" in text
    assert (
        "    neck=None,  # MultiLevelNeck made a pyramid of one stride, and RAVLT gives"
    ) in text


@pytest.mark.integration
def test_layer_decay_keeps_its_rate():
    """BEiT and MAE spell it layer_decay_rate."""
    wrapper = swap_backbone(load(MAE)).optim_wrapper
    assert wrapper.constructor == "LayerDecayOptimWrapperConstructor"
    assert wrapper.paramwise_cfg.layer_decay_rate == 0.65
