"""Configs beyond the paper's: their recipes, and a step and an evaluation of each."""

import copy
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from helpers.backbones import skip_initialization
from helpers.other_configs import LEAVES, ON_OTHER_DATA, OVER_HOSTS, Leaf, smallest_run
from helpers.panoptic_api import provide_panoptic_api
from helpers.paper_configs import CONFIGS, PATHS
from helpers.tool_runs import ROOT, Run, read_scalars
from ravlt.swap import swap_backbone

pytestmark = pytest.mark.integration


def over(leaves: list[Leaf]) -> pytest.MarkDecorator:
    names = [leaf.name.format("").rpartition("/")[2] for leaf in leaves]
    return pytest.mark.parametrize("leaf", leaves, ids=names)


def test_every_config_is_tested():
    found = {str(path.relative_to(ROOT / "configs"))[:-3] for path in CONFIGS}
    kinds = ("", "-linear")
    others = {leaf.name.format(kind) for leaf in LEAVES for kind in kinds}
    paper = {f"{path.parent.name}/{path.stem}" for path in PATHS}
    assert others | paper == found
    assert not others & paper


@over(LEAVES)
def test_linear_changes_the_attention_only(leaf):
    cfg = copy.deepcopy(leaf.load(linear=True))
    assert cfg.model.backbone.pop("attn_types") == "rala"
    assert cfg.to_dict() == leaf.load(linear=False).to_dict()


@over(LEAVES)
def test_backbone(leaf):
    backbone = leaf.load(linear=False).model.backbone.to_dict()
    backbone.pop("out_indices", None)  # compared with the swap's below
    assert backbone == dict(
        type="RAVLT",
        arch="t",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        init_cfg=dict(
            type="Pretrained",
            checkpoint=(
                "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_T.pth"
            ),
        ),
    )


@over(OVER_HOSTS)
def test_all_but_the_backbone_and_its_channels_is_the_hosts(leaf):
    """The swap, which asks the old backbone and the new one, gives the same."""
    ours = leaf.load(linear=False).to_dict()
    host = Config.fromstring(f'_base_ = "{leaf.host}"', ".py")
    theirs = swap_backbone(host, "t").to_dict()
    assert ours["model"]["backbone"].get("out_indices") == (
        theirs["model"]["backbone"].get("out_indices")
    )
    for cfg in (ours, theirs):
        del cfg["model"]["backbone"], cfg["optim_wrapper"]["paramwise_cfg"]
        for name in ("ravlt_t", "slow_backbone", "no_decay", "auto_scale_lr"):
            cfg.pop(name, None)
    assert ours == theirs


@over(LEAVES)
def test_batch_is_what_the_name_says(leaf):
    cfg = leaf.load(linear=False)
    gpus, images = map(int, leaf.name.split("_")[-2].split("-")[0].split("xb"))
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == gpus * images
    assert not cfg.auto_scale_lr.get("enable")


@over(OVER_HOSTS)
def test_learning_rates_and_decay(leaf, monkeypatch):
    cfg = leaf.load(linear=False)
    skip_initialization(monkeypatch)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(copy.deepcopy(cfg.model))
        optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    groups = {p: g for g in optimizer.optimizer.param_groups for p in g["params"]}
    assert groups.keys() == set(model.parameters())
    settings = cfg.optim_wrapper.optimizer
    rate = settings.lr * (1 if "rtmdet" in leaf.name else 0.1)
    seen = set()
    for module in model.backbone.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = isinstance(module, nn.LayerNorm | nn.SyncBatchNorm)
            exempt = is_norm or name.startswith("gamma_")
            if name == "bias" and not is_norm:  # only RTMDet exempts biases
                exempt = "rtmdet" in leaf.name
            decay = 0 if exempt else settings.weight_decay
            assert groups[parameter]["weight_decay"] == decay, name
            assert groups[parameter]["lr"] == pytest.approx(rate), name
            seen.add((is_norm, name))
    assert len(seen) == 6  # weights and biases in norms and elsewhere, layer scales
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            assert groups[parameter]["lr"] == settings.lr, name


@over(ON_OTHER_DATA)
def test_sizes_are_what_the_name_says(leaf):
    cfg = leaf.load(linear=False)
    crop = tuple(map(int, leaf.name.rpartition("-")[2].split("x")))
    steps = {s.type: s for s in cfg.train_dataloader.dataset.pipeline}
    assert steps["RandomCrop"].crop_size == cfg.model.data_preprocessor.size == crop
    (test,) = [s for s in cfg.val_dataloader.dataset.pipeline if s.type == "Resize"]
    whole = dict(cityscapes=(2048, 1024), loveda=(1024, 1024), isaid=crop)
    assert test.scale == whole[leaf.name.split("_")[-1].split("-")[0]]
    assert cfg.model.test_cfg.mode == "whole"
    iters = 160_000 if "upernet" in leaf.name else 80_000
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters == iters


@over(ON_OTHER_DATA)
def test_data_are_the_hosts(leaf):
    ours = leaf.load(linear=False)
    theirs = Config.fromstring(f'_base_ = "{leaf.host}"', ".py")
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        assert ours[name].dataset == theirs[name].dataset
    for name in ("val_evaluator", "test_evaluator", "tta_pipeline", "tta_model"):
        assert ours[name] == theirs[name]


@over([leaf for leaf in LEAVES if leaf.metric == "mIoU"])
def test_labels_are_read_as_the_heads_name_them(tmp_path, leaf):
    leaf.write_data(tmp_path)
    cfg = leaf.load(linear=False)
    dataset = copy.deepcopy(cfg.train_dataloader.dataset)
    (loads,) = [s for s in dataset.pipeline if s.type == "LoadAnnotations"]
    dataset.update(data_root=str(tmp_path), pipeline=[loads])
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build(dataset)
    assert len(dataset) == 2
    last = len(dataset.metainfo["classes"]) - 1
    heads = [cfg.model.get(key) for key in ("decode_head", "auxiliary_head")]
    assert {head.num_classes for head in heads if head} == {last + 1}
    labels = torch.as_tensor(dataset[0]["gt_seg_map"])
    assert labels.unique().tolist() == [0, last, 255]
    assert (labels == last).sum() == 30 * 25


@over(LEAVES)
@pytest.mark.parametrize(
    "linear",
    [
        pytest.param(False, id="released"),
        pytest.param(True, id="linear", marks=pytest.mark.slow),
    ],
)
def test_it_trains_and_evaluates(tmp_path, leaf, linear):
    leaf.write_data(tmp_path / "data")
    smallest_run(leaf.load(linear)).dump(tmp_path / "config.py")
    line = ["config.py", "--work-dir", "work", "--data-root", "data"]
    run = {}
    if "panoptic" in leaf.name:  # a process of its own, which has not imported mmdet
        run = dict(prepare=provide_panoptic_api, gpu=True)
    Run("train.py", line, tmp_path, **run).succeeded()
    records = read_scalars(tmp_path / "work")
    losses = [record["loss"] for record in records if "loss" in record]
    assert all(math.isfinite(loss) for loss in losses)
    (found,) = [record[leaf.metric] for record in records if leaf.metric in record]
    assert 0 <= found <= 100
