"""Pixels, weights, learning rates and decay agree with RAVLT after a swap."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from helpers.swap_configs import (
    DEEPLAB,
    MASK2FORMER,
    QDTRACK,
    RETINANET,
    SEGFORMER,
    SOFT_TEACHER,
    load,
    swapped,
)
from ravlt import RAVLT, swap_backbone
from ravlt.swap import plan_swap

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
BGR = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)


class Model(nn.Module):
    """As a detector names its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = RAVLT("t")
        self.bbox_head = nn.Linear(2, 2)
        self.query_embed = nn.Embedding(2, 2)


def groups(cfg: Config) -> dict[str, tuple[float, float]]:
    """Learning rate and decay of each parameter, from the real optimizer."""
    model = Model()
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {name: found[id(p)] for name, p in model.named_parameters()}


def preprocess(cfg: Config, pixels: torch.Tensor) -> torch.Tensor:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        made = MODELS.build(cfg.model.data_preprocessor)
    return made(dict(inputs=[pixels], data_samples=None))["inputs"]


@pytest.mark.parametrize("old", [BGR, {}], ids=["caffe", "raw pixels"])
def test_pixels_are_normalised_as_imagenet(old):
    """A BGR image whose channels are ImageNet's means is zero, deviations are one."""
    cfg = copy.deepcopy(load(RETINANET))
    for key in ("mean", "std", "bgr_to_rgb"):
        del cfg.model.data_preprocessor[key]
    cfg.model.data_preprocessor.update(old)
    new = swap_backbone(cfg)
    mean, std = (torch.tensor(x[::-1]).view(3, 1, 1) for x in (MEAN, STD))
    pixels = mean + std * torch.tensor([3.0, 2.0, 1.0]).view(3, 1, 1)
    out = preprocess(new, pixels.expand(3, 32, 32))
    expected = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        (QDTRACK, [("data_preprocessor",)]),
        (
            SOFT_TEACHER,
            [
                ("detector", "data_preprocessor"),
                ("data_preprocessor", "data_preprocessor"),
            ],
        ),
    ],
    ids=["tracking", "semi-supervised"],
)
def test_pixels_inside_of_wrappers(name, places):
    for place in places:
        node = swapped(name).model
        for key in place:
            node = node[key]
        assert (node.mean, node.std, node.bgr_to_rgb) == (MEAN, STD, True)


def test_no_weights_of_the_old_backbone_are_loaded():
    cfg = copy.deepcopy(load(DEEPLAB))
    assert cfg.model.pretrained
    cfg.load_from = "deeplab.pth"
    new = swap_backbone(cfg)
    assert new.load_from is None
    assert new.model.pretrained is None
    assert "init_cfg" not in new.model.backbone


def test_weights_of_ravlt():
    backbone = swap_backbone(load(RETINANET), "s", pretrained="S.pth").model.backbone
    assert backbone.init_cfg == dict(type="Pretrained", checkpoint="S.pth")
    # The old backbone's norms were kept in eval mode, which needs statistics.
    assert load(RETINANET).model.backbone.norm_eval
    assert backbone.norm_eval
    assert "norm_eval" not in swapped(RETINANET).model.backbone


def test_layer_scales_do_not_decay():
    found = groups(swapped(RETINANET))
    scales = {n for n in found if ".gamma_" in n}
    assert len(scales) == 2 * sum((2, 2, 6, 2))
    assert {found[n] for n in scales} == {(0.01, 0.0)}
    assert {found[n] for n in found.keys() - scales} == {(0.01, 1e-4)}


def test_rates_that_named_the_old_backbone():
    """Mask2Former: a backbone at a tenth of the rate, whose norms do not decay."""
    old = load(MASK2FORMER).optim_wrapper.paramwise_cfg.custom_keys
    new = swapped(MASK2FORMER).optim_wrapper.paramwise_cfg.custom_keys
    assert old["backbone.stages.0.blocks.0.norm"].decay_mult == 0.0
    assert not any(key.startswith("backbone.") for key in new)
    found = groups(swapped(MASK2FORMER))
    assert found["bbox_head.weight"] == pytest.approx((1e-4, 0.05))
    assert found["query_embed.weight"] == pytest.approx((1e-4, 0.0))
    model = Model()
    norms = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
        for kind, _ in module.named_parameters()
    }
    assert norms
    for name, values in found.items():
        if name.startswith("backbone."):
            decay = 0.0 if ".gamma_" in name or name in norms else 0.05
            assert values == pytest.approx((1e-5, decay)), name


def test_keys_that_still_mean_something_stay():
    new = swapped(SEGFORMER).optim_wrapper.paramwise_cfg.custom_keys
    assert new.head == dict(lr_mult=10.0)
    assert new.norm == dict(decay_mult=0.0)
    found = groups(swapped(SEGFORMER))
    norms = {n: v for n, v in found.items() if "norm" in n}
    assert norms
    assert {decay for _, decay in norms.values()} == {0.0}


def test_layer_decay_of_the_hosts_becomes_ours():
    cfg = copy.deepcopy(load(MASK2FORMER))
    cfg.optim_wrapper.constructor = "LearningRateDecayOptimizerConstructor"
    cfg.optim_wrapper.paramwise_cfg = dict(
        decay_rate=0.8, decay_type="layer_wise", num_layers=6
    )
    found = groups(swap_backbone(cfg))
    layers = sum((2, 2, 6, 2)) + 2
    assert found["bbox_head.weight"] == pytest.approx((1e-4, 0.05))
    first, last = "patch_embed.proj.0.weight", "layers.3.blocks.1.attn.qkvo.weight"
    assert found[f"backbone.{first}"][0] == pytest.approx(1e-4 * 0.8 ** (layers - 1))
    assert found[f"backbone.{last}"][0] == pytest.approx(1e-4 * 0.8)
    assert found["backbone.layers.3.blocks.1.gamma_1"][1] == 0.0


def test_warnings_name_the_setting():
    assert plan_swap(load(MASK2FORMER), pretrained="T.pth").warnings == ()
    scratch, optimizer = plan_swap(load(RETINANET)).warnings
    assert "name ImageNet weights with pretrained" in scratch
    assert optimizer.startswith("optim_wrapper.optimizer is SGD with lr=0.01, tuned")
    (strides, _) = plan_swap(load(DEEPLAB), pretrained="T.pth").warnings
    assert strides.startswith(
        "ResNetV1c gave strides [4, 8, 8, 8], RAVLT gives [4, 8, 16, 32]: heads see a "
        "coarser grid"
    )
    name = "mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py"
    (last, _) = plan_swap(load(name), pretrained="T.pth").warnings
    assert last.startswith("ResNet gave no stride above 16: RAVLT's later stages are")
