"""Layer-wise learning rates: each parameter once, each rate from its depth."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from torch import nn

import ravlt
from ravlt.errors import RAVLTError

PARAMWISE = dict(
    layer_decay_rate=0.5,
    norm_decay_mult=0.0,
    custom_keys=dict(gamma_1=dict(decay_mult=0.0), neck=dict(lr_mult=3.0)),
)


class Detector(nn.Module):
    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.backbone = ravlt.RAVLT("test", **kwargs)
        self.neck = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(2, 2)


def groups_of(model, paramwise=PARAMWISE) -> dict[str, dict]:
    cfg = ConfigDict(
        constructor="LayerDecayOptimWrapperConstructor",
        optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05),
        paramwise_cfg=copy.deepcopy(paramwise),
    )
    optimizer = build_optim_wrapper(model, cfg).optimizer
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in groups, "twice"
            groups[names[parameter]] = group
    return groups


def test_every_parameter_has_the_rate_of_its_depth():
    """Depths of 'test' are 1, 1, 2, 1: seven layers with stem and output norms."""
    model = Detector()
    groups = groups_of(model)
    assert groups.keys() == dict(model.named_parameters()).keys()
    depths = {
        "backbone.patch_embed": 0,
        "backbone.layers.0": 1,
        "backbone.layers.1": 2,
        "backbone.layers.2.blocks.0": 3,
        "backbone.layers.2.blocks.1": 4,
        "backbone.layers.2.downsample": 4,
        "backbone.layers.3": 5,
        "backbone.extra_norms": 6,
        "neck": 6,
        "head": 6,
    }
    for name, group in groups.items():
        (depth,) = [d for prefix, d in depths.items() if name.startswith(prefix + ".")]
        multiple = 3.0 if name.startswith("neck.") else 1.0
        assert group["lr"] == pytest.approx(multiple * 0.5 ** (6 - depth)), name
        exempt = "gamma_1" in name or "norm" in name or "patch_embed.proj.1." in name
        exempt |= any(f"patch_embed.proj.{i}." in name for i in (4, 7, 10))
        assert group["weight_decay"] == (0 if exempt else 0.05), name


def test_stages_that_are_not_built_do_not_count():
    groups = groups_of(Detector(out_indices=(0, 1)))
    assert groups["backbone.patch_embed.proj.0.weight"]["lr"] == 0.5**3
    assert groups["backbone.layers.1.blocks.0.pos.weight"]["lr"] == 0.5


def test_frozen_parameters_are_left_out():
    model = Detector(frozen_stages=1)
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    assert groups_of(model).keys() == wanted
    assert len(wanted) < len(dict(model.named_parameters()))


def test_depths_with_a_prefix():
    backbone = ravlt.RAVLT("t")
    assert backbone.get_layer_depth("patch_embed.proj.0.bias") == (0, 14)
    name = "backbone.layers.2.blocks.5.ffn.fc1.weight"
    assert backbone.get_layer_depth(name, "backbone.") == (10, 14)
    name = "layers.2.downsample.norm.weight"
    assert backbone.get_layer_depth(name) == (10, 14)


def test_one_step_moves_by_the_rate():
    """Adam's first step is the learning rate itself, whatever the gradient."""
    model = Detector()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    cfg = ConfigDict(
        constructor="LayerDecayOptimWrapperConstructor",
        optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.0, eps=1e-30),
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    wrapper = build_optim_wrapper(model, cfg)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    wrapper.step()
    for name, depth in (("backbone.patch_embed.proj.0.weight", 0), ("head.weight", 6)):
        step = before[name] - dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(
            step, torch.full_like(step, 1e-2 * 0.5 ** (6 - depth)), rtol=1e-3, atol=1e-7
        )


@pytest.mark.parametrize("rate", [None, 0, 1.5])
def test_bad_rates(rate):
    with pytest.raises(RAVLTError, match=rf"layer_decay_rate={rate} .* in \(0, 1\]"):
        groups_of(Detector(), dict(layer_decay_rate=rate))


def test_models_without_depths():
    with pytest.raises(RAVLTError, match="no module with get_layer_depth in Linear"):
        groups_of(nn.Linear(2, 2), dict(layer_decay_rate=0.9))
