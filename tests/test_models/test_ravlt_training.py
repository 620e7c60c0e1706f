"""Training of the backbone: recomputation, freezing, batch norm statistics."""

import copy
import importlib

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers.backbones import build, images
from ravlt.models.archs import ARCHS
from ravlt.models.ravlt import Block


def test_with_cp_gives_identical_gradients():
    plain, saving = build(drop_path_rate=0.3), build(drop_path_rate=0.3, with_cp=True)
    grads = []
    for model in (plain, saving):
        torch.manual_seed(5)  # drop path draws, and recomputation draws the same
        outs = model(images(4, 3, 64, 64))
        sum((out * out.cos()).sum() for out in outs).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=0, atol=0, msg=name)
    for name, value in plain.state_dict().items():
        assert torch.equal(saving.state_dict()[name], value), name


@pytest.mark.parametrize("profile", ["gated", "paper"])
@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_with_cp_moves_statistics_once(profile, norm):
    """CHELA has batch norms within the blocks, which are computed twice."""
    attn_types, norm_cfg = dict(type="chela", profile=profile), dict(type=norm)
    plain, saving = (
        build(attn_types=attn_types, norm_cfg=norm_cfg, with_cp=with_cp).train()
        for with_cp in (False, True)
    )
    kinds = {type(m) for m in plain.modules() if isinstance(m, _BatchNorm)}
    assert kinds == {nn.SyncBatchNorm if norm == "SyncBN" else nn.BatchNorm2d}
    for model in (plain, saving):
        for _ in range(2):
            sum(out.square().sum() for out in model(images(2, 3, 64, 64))).backward()
    state = saving.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, msg=name)
    for norm in plain.modules():
        if isinstance(norm, _BatchNorm):
            assert norm.momentum == 0.1
            assert norm.num_batches_tracked == 2


def test_with_cp_recomputes_in_training_only(monkeypatch):
    calls = []
    original = torch.utils.checkpoint.checkpoint

    def spy(function, *args, **kwargs):
        calls.append(function)
        assert kwargs["use_reentrant"] is False
        return original(function, *args, **kwargs)

    def blocks():
        return sum(isinstance(function, Block) for function in calls)

    module = importlib.import_module("ravlt.ops.recompute")
    monkeypatch.setattr(module, "checkpoint", spy)
    model, depth = build(with_cp=True), sum(ARCHS["test"]["depths"])
    model.train()(images(2, 3, 32, 32))
    assert blocks() == depth
    model.eval()(images(2, 3, 32, 32))
    assert blocks() == depth
    calls.clear()
    with torch.no_grad():
        model.train()(images(2, 3, 32, 32))
        model.eval()(images(2, 3, 32, 32))
    assert calls == []  # feed-forward networks do not recompute either


@pytest.fixture
def recomputed(monkeypatch) -> list:
    """Record the functions that the backward pass calls again."""
    calls = []
    module = importlib.import_module("ravlt.ops.recompute")
    original = module.checkpoint

    def spy(function, *args, **kwargs):
        calls.append(function)
        return original(function, *args, **kwargs)

    monkeypatch.setattr(module, "checkpoint", spy)
    return calls


@pytest.mark.parametrize(
    ("option", "with_cp", "train", "count"),
    [
        (None, False, True, 5),  # the default on a CPU
        (True, False, True, 5),
        (False, False, True, 0),
        (True, False, False, 0),
        (None, True, True, 5),  # blocks recompute as a whole, not the networks in them
        (True, True, True, 5),
    ],
)
def test_when_feed_forward_networks_recompute(
    recomputed, option, with_cp, train, count
):
    model = build(recompute_ffn=option, with_cp=with_cp).train(train)
    outs = model(images(2, 3, 32, 32))
    assert len(recomputed) == count
    assert all(isinstance(f, Block) is with_cp for f in recomputed)
    sum(out.square().sum() for out in outs).backward()
    assert len(recomputed) == count  # the backward pass adds none
    recomputed.clear()
    with torch.no_grad():
        model(images(2, 3, 32, 32))
    assert recomputed == []


def test_checkpointing_can_be_switched(recomputed):
    model = build(recompute_ffn=True).train()
    for enable, kind in ((True, Block), (False, type(model.layers[0].blocks[0].ffn))):
        recomputed.clear()
        model.set_grad_checkpointing(enable)
        model(images(2, 3, 32, 32))
        assert len(recomputed) == 5
        assert all(isinstance(getattr(f, "__self__", f), kind) for f in recomputed)


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
@pytest.mark.parametrize("frozen_stages", range(-1, 5))
def test_frozen_stages_really_freeze(frozen_stages, norm):
    model = build(frozen_stages=frozen_stages, norm_cfg=dict(type=norm))
    assert model.train() is model
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad]
        or [nn.Parameter(torch.ones(1))],
        lr=0.1,
    )
    outs = model(images(4, 3, 64, 64))
    if frozen_stages < 4:
        sum((out * out.cos()).sum() for out in outs).backward()
        optimizer.step()
    else:
        assert not any(out.requires_grad for out in outs)
    frozen = [f"layers.{i}." for i in range(frozen_stages)]
    frozen += [f"extra_norms.{i}." for i in range(frozen_stages)]
    frozen += ["patch_embed."] if frozen_stages >= 0 else []
    for name, value in model.state_dict().items():
        if name.startswith(tuple(frozen)) or name.endswith("angle"):
            assert torch.equal(value, before[name]), name
        elif value.is_floating_point():
            assert not torch.equal(value, before[name]), name
    for name, module in model.named_modules():
        if f"{name}.".startswith(tuple(frozen)):
            assert not module.training, name


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_norm_eval_keeps_statistics_and_trains_the_rest(norm):
    model = build(norm_eval=True, norm_cfg=dict(type=norm)).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert len(norms) == 4 + 3
    assert not any(m.training for m in norms)
    before = [m.running_mean.clone() for m in norms]
    outs = model(images(4, 3, 64, 64))
    sum((out * out.cos()).sum() for out in outs).backward()
    for module, mean in zip(norms, before, strict=True):
        assert torch.equal(module.running_mean, mean)
        assert module.weight.grad.abs().sum() > 0
    assert model.layers[0].training


def test_sync_bn_without_a_process_group_is_batch_norm():
    assert not dist.is_initialized()
    plain, synced = build().train(), build(norm_cfg=dict(type="SyncBN")).train()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    x = images(2, 3, 64, 64)
    for a, b in zip(plain(x), synced(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
