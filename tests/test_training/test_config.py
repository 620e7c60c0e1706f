import copy
from importlib.util import find_spec

import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hooks import Hook
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, LOOPS, Registry
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from torch import nn

from helpers.tool_runs import DET, SEG
from ravlt.config import load_config, type_name
from ravlt.errors import RAVLTError
from ravlt.training.config import (
    add_curves,
    add_safety,
    read_safety,
    set_bad_losses,
    set_precision,
)

# ------------------------------------------------------------------------- load_config


def test_loads_with_options():
    cfg = load_config(str(SEG), {"model.neck.out_channels": 7, "max_iters": 3})
    assert cfg.model.neck.out_channels == 7 and cfg.max_iters == 3
    assert cfg.default_scope == "mmseg"


def test_loads_configs_of_the_hosts():
    cfg = load_config("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py")
    assert cfg.model.type == "RetinaNet"


def test_finds_mmseg_of_the_forks(monkeypatch):
    def is_installed(package: str) -> bool:
        return package != "mmsegmentation" and find_spec(package) is not None

    monkeypatch.setattr("ravlt.config.is_installed", is_installed)
    monkeypatch.setattr("mmengine.config.config.is_installed", is_installed)
    monkeypatch.setitem(MODULE2PACKAGE, "mmseg", "mmsegmentation")
    cfg = load_config(str(SEG))
    assert MODULE2PACKAGE["mmseg"] == "mmseg"
    assert cfg.model.decode_head.type == "FPNHead"


@pytest.mark.parametrize("path", ["no/such.py", "mmdet::no/such.py"])
def test_missing_config(path):
    with pytest.raises(RAVLTError) as refused:
        load_config(path)
    assert str(refused.value) == f"Config '{path}' does not exist; correct the path."


def test_missing_base_names_the_base(tmp_path):
    path = tmp_path / "child.py"
    path.write_text("_base_ = 'nothing.py'\n")
    with pytest.raises(RAVLTError) as refused:
        load_config(str(path))
    message = str(refused.value)
    assert message.startswith(f"Config '{path}' inherits what is not there (")
    assert str(tmp_path / "nothing.py") in message and "\n" not in message


def test_config_without_a_model(tmp_path):
    path = tmp_path / "part.py"
    path.write_text("a = 1\n")
    with pytest.raises(
        RAVLTError, match=r"part\.py' has no model; give the config of a"
    ):
        load_config(str(path))


# --------------------------------------------------------------------------- type_name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (None, ""),
        ("OptimWrapper", "OptimWrapper"),
        ("mmengine.OptimWrapper", "OptimWrapper"),
        ("mmengine.optim.OptimWrapper", "OptimWrapper"),
        (OptimWrapper, "OptimWrapper"),
        # Registered under other names.
        (PretrainedInit, "Pretrained"),
        ("mmengine.model.PretrainedInit", "Pretrained"),
        (nn.SyncBatchNorm, "SyncBN"),
    ],
)
def test_type_name(kind, name):
    assert type_name(dict(type=kind)) == name
    assert type_name(dict(constructor=kind), "constructor") == name


# --------------------------------------------------------------- add_safety, add_curves


@pytest.mark.parametrize(
    ("config", "metric"), [(SEG, "mIoU"), (DET, "coco/bbox_mAP")], ids=["seg", "det"]
)
def test_safety_of_ours(config, metric):
    cfg = load_config(str(config))
    before = copy.deepcopy(cfg.default_hooks.checkpoint.to_dict())
    add_safety(cfg)
    added = dict(type="SafeCheckpointHook", save_best=metric, rule="greater")
    assert cfg.default_hooks.checkpoint.to_dict() == before | added
    assert [hook.type for hook in cfg.custom_hooks] == [
        "SameStartHook",
        "StopOnNonFiniteHook",
        "LossSpikeHook",
        "MissedEvaluationHook",
    ]
    once = cfg.to_dict()
    add_safety(cfg)
    assert cfg.to_dict() == once


def test_classes_of_somebody_else_stay():
    """Also if their names are mmengine's."""
    for name, base in (("CheckpointHook", Hook), ("IterBasedTrainLoop", BaseLoop)):
        registry = HOOKS if base is Hook else LOOPS
        child = Registry(registry.name, scope="mine", parent=registry)
        child.register_module(name, module=type(name, (base,), {}))
    loop = dict(type="mine.IterBasedTrainLoop", max_iters=3)
    hook = dict(type="mine.CheckpointHook")
    cfg = Config(dict(default_hooks=dict(checkpoint=hook), train_cfg=loop))
    try:
        add_safety(cfg)
    finally:
        HOOKS.children.pop("mine")
        LOOPS.children.pop("mine")
    assert cfg.train_cfg.to_dict() == loop
    assert cfg.default_hooks.checkpoint.to_dict() == hook


def test_safety_can_be_turned_off():
    cfg = load_config(str(SEG))
    loop = cfg.train_cfg.type
    cfg.safety = dict(exact_resume=False, finite_weights=False)
    add_safety(cfg)
    assert cfg.train_cfg.type == loop
    hooks = {hook.type: hook for hook in cfg.custom_hooks}
    assert hooks["StopOnNonFiniteHook"].check_weights is False
    switches = dict(checksums=True, sync_files=True)
    assert read_safety(cfg) == cfg.safety.to_dict() | switches
    cfg.safety = dict(finite=False)
    with pytest.raises(RAVLTError, match="safety has no switch 'finite'; use exact_"):
        add_safety(cfg)


def test_safety_where_nothing_is_said():
    cfg = Config(dict(val_evaluator=[dict(type="Other"), dict(type="mmseg.IoUMetric")]))
    add_safety(cfg)
    assert cfg.default_hooks.checkpoint.to_dict() == dict(
        type="SafeCheckpointHook", save_best="mIoU", rule="greater"
    )


@pytest.mark.parametrize("evaluator", [None, dict(type="Other"), []])
def test_no_best_checkpoint_by_an_unknown_metric(evaluator):
    cfg = Config(dict(val_evaluator=evaluator))
    add_safety(cfg)
    assert cfg.default_hooks.checkpoint.to_dict() == dict(type="SafeCheckpointHook")


def test_safety_leaves_what_the_config_says():
    checkpoint = dict(type="CheckpointHook", save_best="coco/segm_mAP", rule="less")
    hooks = [dict(type="StopOnNonFiniteHook", priority=1), dict(type="Mine")]
    hooks.append(dict(type="LossSpikeHook", factor=5))
    cfg = Config(
        dict(
            default_hooks=dict(checkpoint=checkpoint),
            custom_hooks=hooks,
            val_evaluator=dict(type="CocoMetric"),
        )
    )
    add_safety(cfg)
    expected = checkpoint | dict(type="SafeCheckpointHook")
    assert cfg.default_hooks.checkpoint.to_dict() == expected
    added = [dict(type=kind) for kind in ("SameStartHook", "MissedEvaluationHook")]
    assert [hook.to_dict() for hook in cfg.custom_hooks] == [*hooks, *added]


@pytest.mark.parametrize("checkpoint", [None, dict(type="MyHook", interval=3)])
def test_safety_leaves_other_checkpoint_hooks(checkpoint):
    cfg = Config(
        dict(
            default_hooks=dict(checkpoint=checkpoint),
            val_evaluator=dict(type="CocoMetric"),
        )
    )
    add_safety(cfg)
    assert cfg.default_hooks.checkpoint == checkpoint


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (dict(type="IterBasedTrainLoop"), "SafeIterBasedTrainLoop"),
        (dict(type=EpochBasedTrainLoop), "SafeEpochBasedTrainLoop"),
        (dict(type="mmengine.runner.IterBasedTrainLoop"), "SafeIterBasedTrainLoop"),
        (dict(by_epoch=True), "SafeEpochBasedTrainLoop"),
        (dict(by_epoch=False), "SafeIterBasedTrainLoop"),
        (dict(type="MyLoop"), "MyLoop"),
    ],
)
def test_loops_that_resume_exactly(said, expected):
    cfg = Config(dict(train_cfg=dict(**said, max_iters=3)))
    for _ in range(2):  # a run leaves its config behind, and that is run
        add_safety(cfg)
        assert cfg.train_cfg.to_dict() == dict(type=expected, max_iters=3)


def test_curves_are_added_once():
    cfg = load_config(str(SEG))
    for _ in range(2):
        add_curves(cfg)
    assert [hook.type for hook in cfg.custom_hooks] == ["CurveHook"]
    kinds = [backend.type for backend in cfg.visualizer.vis_backends]
    assert kinds == ["LocalVisBackend", "TensorboardVisBackend"]


@pytest.mark.parametrize(
    ("loop", "said", "expected"),
    [
        ("IterBasedTrainLoop", {}, False),
        ("IterBasedTrainLoop", {"log_metric_by_epoch": True}, True),
        ("SafeIterBasedTrainLoop", {}, False),
        ("EpochBasedTrainLoop", {}, None),
    ],
)
def test_metrics_are_logged_by_iteration_where_that_counts(loop, said, expected):
    logger = dict(type="LoggerHook", **said)
    cfg = Config(dict(train_cfg=dict(type=loop), default_hooks=dict(logger=logger)))
    add_curves(cfg)
    assert cfg.default_hooks.logger.get("log_metric_by_epoch") is expected


def test_curves_without_tensorboard(monkeypatch):
    """mmengine would raise when the run starts."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cfg = load_config(str(SEG))
    add_curves(cfg)
    kinds = [backend.type for backend in cfg.visualizer.vis_backends]
    assert kinds == ["LocalVisBackend"]


def test_curves_without_a_visualizer():
    cfg = Config(dict(model=dict()))
    add_curves(cfg)
    assert "visualizer" not in cfg


# ----------------------------------------------------------------------- set_precision


@pytest.fixture
def gpu(monkeypatch):
    def set_gpu(present: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: present)

    return set_gpu


def wrapper(**keys) -> Config:
    return Config(dict(optim_wrapper=dict(optimizer=dict(type="SGD"), **keys)))


def test_amp_on_a_gpu(gpu):
    gpu(True)
    for keys in ({}, {"type": "OptimWrapper"}, {"type": OptimWrapper}):
        cfg = wrapper(**keys)
        set_precision(cfg, amp=True)
        assert cfg.optim_wrapper.type == "AmpOptimWrapper"
        assert cfg.optim_wrapper.loss_scale == "dynamic"
    cfg = wrapper(type="AmpOptimWrapper", loss_scale=512.0, dtype="float16")
    set_precision(cfg, amp=True)
    assert cfg.optim_wrapper.loss_scale == 512.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_amp_in_either_half_type(gpu, dtype):
    gpu(True)
    for keys in ({}, dict(type="AmpOptimWrapper", loss_scale=512.0, dtype="float16")):
        cfg = wrapper(**keys)
        set_precision(cfg, amp=True, dtype=dtype)
        assert cfg.optim_wrapper.dtype == dtype
        assert cfg.optim_wrapper.loss_scale == keys.get("loss_scale", "dynamic")


def test_amp_without_a_gpu(gpu):
    gpu(False)
    with pytest.raises(RAVLTError, match="--amp needs a GPU, and torch finds none"):
        set_precision(wrapper(), amp=True)


def test_amp_cannot_change_another_wrapper(gpu):
    gpu(True)
    with pytest.raises(RAVLTError, match=r"optim_wrapper\.type='MyWrapper'; set the"):
        set_precision(wrapper(type="MyWrapper"), amp=True)


def test_without_amp_the_config_counts_if_it_can(gpu):
    keys = dict(type="AmpOptimWrapper", loss_scale="dynamic", dtype="bfloat16")
    gpu(True)
    cfg = wrapper(**keys)
    before = cfg.to_dict()
    set_precision(cfg, amp=False)
    assert cfg.to_dict() == before
    gpu(False)
    set_precision(cfg, amp=False)
    assert cfg.optim_wrapper.to_dict() == dict(
        type="OptimWrapper", optimizer=dict(type="SGD")
    )
    cfg = wrapper(type="OptimWrapper")
    before = cfg.to_dict()
    set_precision(cfg, amp=False)
    assert cfg.to_dict() == before


# ---------------------------------------------------------------------- set_bad_losses


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("OptimWrapper", "OptimWrapper"),
        ("AmpOptimWrapper", "AmpOptimWrapper"),
        (AmpOptimWrapper, "AmpOptimWrapper"),
    ],
)
def test_bad_losses_of_either_wrapper(gpu, said, kind):
    cfg = wrapper(type=said)
    set_bad_losses(cfg)
    assert cfg.optim_wrapper.type == said
    cfg.bad_losses = dict(skip=2)
    for _ in range(2):  # a run leaves its config behind, and that is run
        set_bad_losses(cfg)
        assert cfg.optim_wrapper.type == f"Finite{kind}"
        assert cfg.optim_wrapper.skip == 2
    gpu(False)
    set_precision(cfg, amp=False)
    assert cfg.optim_wrapper.type == "FiniteOptimWrapper"
    gpu(True)
    set_precision(cfg, amp=True)
    assert cfg.optim_wrapper.type == "FiniteAmpOptimWrapper"


@pytest.mark.parametrize("value", ["skip", {}, dict(skip=0), dict(skip=1, on=2)])
def test_senseless_bad_losses(value):
    cfg = wrapper()
    cfg.bad_losses = value
    with pytest.raises(RAVLTError, match=r"must be dict\(skip=k\), with k steps"):
        set_bad_losses(cfg)


def test_bad_losses_cannot_change_another_wrapper():
    cfg = wrapper(type="MyWrapper")
    cfg.bad_losses = dict(skip=1)
    with pytest.raises(RAVLTError, match=r"optim_wrapper\.type='MyWrapper'; leave"):
        set_bad_losses(cfg)
