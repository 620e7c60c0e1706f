"""Every config: its name is true, and its recipe is the paper's."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers.backbones import skip_initialization
from helpers.paper_configs import PATHS, name_of, paths_of
from ravlt.models.archs import ARCHS

pytestmark = pytest.mark.integration

TYPES = {
    "retinanet": ("RetinaNet", "RetinaHead"),
    "mask-rcnn": ("MaskRCNN", "StandardRoIHead"),
    "cascade-mask-rcnn": ("CascadeRCNN", "CascadeRoIHead"),
    "fpn": ("EncoderDecoder", "FPNHead"),
    "upernet": ("EncoderDecoder", "UPerHead"),
}


@pytest.fixture(scope="module")
def model(case) -> nn.Module:
    """The model at its real size, uninitialised: only names and shapes are read."""
    with pytest.MonkeyPatch.context() as patch:
        skip_initialization(patch)
        return MODELS.build(copy.deepcopy(case.cfg.model))


SERIES = {
    "retinanet/retinanet_ravlt-{}_fpn_1x_coco",
    "mask_rcnn/mask-rcnn_ravlt-{}_fpn_1x_coco",
    "mask_rcnn/mask-rcnn_ravlt-{}_fpn_ms-crop-3x_coco",
    "cascade_mask_rcnn/cascade-mask-rcnn_ravlt-{}_fpn_4conv1fc-giou_ms-crop-3x_coco",
    "sem_fpn/fpn_ravlt-{}_8xb2-80k_ade20k-512x512",
    "upernet/upernet_ravlt-{}_8xb2-160k_ade20k-512x512",
}
HIGH_RESOLUTION = {
    "mask_rcnn/mask-rcnn_ravlt-{}-linear_fpn_1x_coco-2666x1600",
    "upernet/upernet_ravlt-{}-linear_8xb2-160k_ade20k-1024x1024",
}


def test_every_model_of_the_zoo_has_a_config():
    found = {f"{path.parent.name}/{path.stem}" for path in PATHS}
    sizes = [size + kind for size in "tsbl" for kind in ("", "-linear")]
    expected = {name.format(size) for name in SERIES for size in sizes}
    expected |= {name.format(size) for name in HIGH_RESOLUTION for size in "ts"}
    assert found == expected


def test_model_has_what_the_name_says(case, model):
    name, cfg = case.name, case.cfg.model
    detector, head = TYPES[name["method"]]
    heads = [cfg.get(key, {}) for key in ("bbox_head", "roi_head", "decode_head")]
    assert cfg.type == detector
    assert head in [h.get("type") for h in heads]
    assert ("neck" in cfg) == (name["neck"] == "fpn" or name["method"] == "fpn")
    assert "neck" not in cfg or cfg.neck.type == "FPN"

    backbone = model.backbone
    assert type(backbone).__name__ == "RAVLT"
    assert backbone.arch == name["size"]
    late = "rala" if name["linear"] else "softmax"
    assert backbone.attn_types == ("rala", "rala", late, late)
    rates = [block.drop_path.drop_prob for s in backbone.layers for block in s.blocks]
    drop_path_rate = dict(t=0.1, s=0.15, b=0.4, l=0.55)[name["size"]]
    assert max(rates) == pytest.approx(drop_path_rate)
    norms = [m for m in backbone.modules() if isinstance(m, _BatchNorm)]
    assert {type(m) for m in norms} == {nn.SyncBatchNorm}
    model.train()
    assert all(m.training for m in norms)
    assert all(p.requires_grad for p in backbone.parameters())
    assert cfg.backbone.init_cfg.type == "Pretrained"
    assert cfg.backbone.init_cfg.checkpoint == (
        "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/"
        f"RAVLT_{name['size'].upper()}.pth"
    )
    assert cfg.get("pretrained") is None


def test_in_channels_are_the_backbones(case, model):
    cfg = case.cfg.model
    dims = ARCHS[case.name["size"]]["embed_dims"]
    outputs = [dims[i] for i in model.backbone.out_indices]
    taken = cfg.neck if "neck" in cfg else cfg.decode_head
    assert taken.in_channels == outputs
    if "auxiliary_head" in cfg:
        assert cfg.auxiliary_head.in_channels == dims[cfg.auxiliary_head.in_index]
        assert cfg.auxiliary_head.in_index == 2


@pytest.mark.parametrize("case", paths_of("4conv1fc-giou"), indirect=True, ids=name_of)
def test_cascade_head(case):
    heads = case.cfg.model.roi_head.bbox_head
    assert len(heads) == 3
    for head in heads:
        assert (head.num_shared_convs, head.num_shared_fcs) == (4, 1)
        assert head.norm_cfg.type == "SyncBN"
        assert head.reg_decoded_bbox
        assert head.loss_bbox.type == "GIoULoss"
        assert head.loss_bbox.loss_weight == 10
    rpn_loss = case.cfg.model.rpn_head.loss_bbox
    assert rpn_loss.type == "SmoothL1Loss"
    assert rpn_loss.beta == pytest.approx(1 / 9)


def test_data_are_what_the_name_says(case):
    name, cfg = case.name, case.cfg
    loader = cfg.train_dataloader
    # Of the paper's runs, this one has a batch of its own.
    single = (name["method"], name["size"], name["epochs"]) == ("mask-rcnn", "l", "3")
    assert loader.batch_size == (1 if single else int(name["batch"] or 2))
    total = int(name["gpus"] or 8) * loader.batch_size
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=total)
    dataset = dict(coco="CocoDataset", ade20k="ADE20KDataset")[name["dataset"]]
    assert loader.dataset.type == cfg.val_dataloader.dataset.type == dataset

    pipeline = {step.type: step for step in loader.dataset.pipeline}
    assert pipeline["RandomFlip"].prob == 0.5
    assert cfg.test_dataloader == cfg.val_dataloader
    (test_scale,) = [
        s.scale for s in cfg.val_dataloader.dataset.pipeline if s.type == "Resize"
    ]
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]
    assert cfg.model.data_preprocessor.bgr_to_rgb
    if name["dataset"] == "coco":
        assert cfg.model.data_preprocessor.pad_size_divisor == 32
        assert ("RandomChoice" in pipeline) == bool(name["ms_crop"])
        if name["ms_crop"]:
            resize, crop = pipeline["RandomChoice"].transforms
            assert [s[0] for s in resize[0].scales] == list(range(480, 801, 32))
            assert [s[0] for s in crop[0].scales] == [400, 500, 600]
            assert (crop[1].type, crop[1].crop_size) == ("RandomCrop", (384, 600))
            assert (crop[1].crop_type, crop[1].allow_negative_crop) == (
                "absolute_range",
                True,
            )
            assert crop[2] == resize[0]
        else:
            scale = tuple(map(int, (name["crop"] or "1333x800").split("x")))
            assert pipeline["Resize"].scale == test_scale == scale
    else:
        crop = tuple(int(n) for n in name["crop"].split("x"))
        assert test_scale == (4 * crop[0], crop[0])
        assert pipeline["RandomCrop"].crop_size == crop
        assert pipeline["RandomCrop"].cat_max_ratio == 0.75
        assert pipeline["RandomResize"].scale == (4 * crop[0], crop[0])
        assert "PhotoMetricDistortion" in pipeline
        assert cfg.tta_model.type == "SegTTAModel"
        scales, flips = cfg.tta_pipeline[1].transforms[:2]
        ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
        assert [s.scale_factor * 512 for s in scales] == [r * crop[0] for r in ratios]
        assert [f.prob for f in flips] == [0.0, 1.0]
        assert cfg.model.data_preprocessor.size == crop
        assert cfg.model.test_cfg.mode == "whole"
        assert cfg.model.decode_head.num_classes == 150


def test_schedule_is_what_the_name_says(case):
    name, cfg = case.name, case.cfg
    *warmup, decay = cfg.param_scheduler
    if name["epochs"]:
        epochs, milestones = {"1": (12, [8, 11]), "3": (36, [27, 33])}[name["epochs"]]
        assert cfg.train_cfg.max_epochs == decay.end == epochs
        assert (decay.type, decay.milestones) == ("MultiStepLR", milestones)
        assert decay.gamma == 0.1
        assert decay.get("by_epoch", True)
        assert [(w.start_factor, w.end) for w in warmup] == [(0.001, 500)]
        assert cfg.train_cfg.val_interval == 1
    else:
        iters = 1000 * int(name["iters"])
        assert cfg.train_cfg.max_iters == decay.end == iters
        power, eta_min, expected_warmup = {
            "fpn": (0.9, 1e-6, []),
            "upernet": (1.0, 0.0, [(1e-6, 1500)]),
        }[name["method"]]
        assert (decay.type, decay.power, decay.eta_min) == ("PolyLR", power, eta_min)
        assert not decay.by_epoch
        assert decay.begin == (1500 if warmup else 0)
        assert [(w.start_factor, w.end) for w in warmup] == expected_warmup
        assert cfg.train_cfg.val_interval == iters // 10
    assert all((w.type, w.by_epoch) == ("LinearLR", False) for w in warmup)
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval


def test_parameter_groups(case, model, monkeypatch):
    recipe, cfg = case.recipe, case.cfg.optim_wrapper
    if recipe.loss_scale is None:
        assert cfg.type == "OptimWrapper"
    else:
        assert (cfg.type, cfg.dtype) == ("AmpOptimWrapper", "float16")
        assert cfg.loss_scale == recipe.loss_scale
    # Without a GPU the wrapper refuses to exist; it is not used here, only read.
    monkeypatch.setattr(
        "mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available",
        lambda: True,
    )
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg)).optimizer

    assert type(optimizer) is torch.optim.AdamW
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    in_norm_layer = {
        parameter
        for module in model.modules()
        if isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))
        for parameter in module.parameters()
    }
    assert groups.keys() == set(model.parameters())
    exempted = {"gamma_1": 0, "gamma_2": 0, "bias": 0, "norm": 0}
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        kind = "norm" if parameter in in_norm_layer else leaf
        exempt = kind in exempted
        if exempt:
            exempted[kind] += 1
        expected = 0 if exempt else recipe.weight_decay
        assert groups[parameter]["weight_decay"] == expected, name
        assert groups[parameter]["lr"] == recipe.lr, name
        assert groups[parameter]["betas"] == (0.9, 0.999), name
    blocks = sum(ARCHS[case.name["size"]]["depths"])
    assert exempted["gamma_1"] == exempted["gamma_2"] == blocks
    assert exempted["bias"] > 7 * blocks
    assert exempted["norm"] > 4 * blocks


def test_number_of_parameters_is_the_papers(case, model):
    papers = case.recipe.params.get(case.name["size"])
    if papers is None:  # a size that the paper does not have
        assert case.name["size"] == "t"
        return
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == papers
