"""A trial of a model detects losses that are not finite, and changes nothing."""

import copy

import pytest

from helpers.swap_configs import RETINANET, load
from ravlt import RAVLTError, swap_backbone
from ravlt.analysis.trial import try_model


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
