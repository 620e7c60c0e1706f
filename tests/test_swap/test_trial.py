"""A trial of a model detects losses that are not finite, and changes nothing."""

import copy

import pytest

from helpers.swap_configs import RETINANET, load
from ravlt import RAVLTError, swap_backbone
from ravlt.swap.trial import try_model


def test_a_loss_that_is_not_finite_is_an_error():
    cfg = swap_backbone(load(RETINANET), "test")
    cfg.model.bbox_head.loss_cls.loss_weight = float("inf")
    with pytest.raises(RAVLTError, match="In one training step the loss is not finite"):
        try_model(cfg, [64])


def test_trying_changes_nothing():
    cfg = swap_backbone(load(RETINANET), "test", pretrained="no/such.pth")
    before = copy.deepcopy(cfg.to_dict())
    trial = try_model(cfg, [64])
    assert trial.loss > 0
    assert trial.idle == []
    assert cfg.to_dict() == before


def test_a_level_that_no_neck_reads():
    """DDP has to be told of it, as the swap does for necks that need the level."""
    cfg = swap_backbone(load(RETINANET), "test")
    cfg.model.backbone.out_indices = (0, 1, 2, 3)
    cfg.model.neck.update(in_channels=[16, 32, 48, 64], start_level=1)
    assert try_model(cfg, [64]).idle == [
        "extra_norms.0.norm.weight",
        "extra_norms.0.norm.bias",
    ]
    cfg.find_unused_parameters = True
    assert try_model(cfg, [64]).idle == []
