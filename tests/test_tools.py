"""The command lines, in processes of their own and in a foreign directory."""

import math
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.tool_runs import (
    Run,
    as_line,
    is_finite,
    read_scalars,
    train,
)
from ravlt.training.config import read_safety
from ravlt.weights.checkpoint import read_checkpoint

pytestmark = pytest.mark.integration


def test_log(trained):
    for iteration in range(1, 5):
        (line,) = re.findall(rf"Iter\(train\) \[{iteration}/4\].*", trained.out)
        assert re.search(r"lr: \S+  eta: 0:00:0\d  time: ", line)
        for name in trained.losses:
            assert re.search(rf" {name}: \d", line)


def test_start_is_short_and_the_log_file_complete(trained):
    before, _ = trained.out.split("Iter(train) [1/4]")
    assert len(before.splitlines()) < 30
    for line in ("data: 16 images, ", "evaluation: 4 images, ", "4 iterations of 2 im"):
        assert line in before
    details = ("System environment:", "Config:\n", "Hooks will be", "paramwise_options")
    (log,) = trained.work.glob("*/*.log")
    for text in details:
        assert text not in trained.out and text in log.read_text()


def test_curves(trained):
    with Image.open(trained.work / "curves.png") as image:
        image.load()
        assert image.width > 1000
        # White, grid, text and lines of several colours.
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 20)) > 50


def test_tensorboard_has_what_was_logged(trained):
    (path,) = trained.work.glob("*/vis_data/events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    logged = read_scalars(trained.work)
    for name in ({"lr"} | trained.losses, {trained.metric}):
        for key in name:
            mine = [(line["step"], line[key]) for line in logged if key in line]
            theirs = [(e.step, e.value) for e in events.Scalars(key)]
            assert len(mine) >= 2
            assert theirs == [(step, pytest.approx(value)) for step, value in mine]


def test_config_is_kept_as_it_was_used(trained):
    cfg = Config.fromfile(trained.work / trained.config.name)
    assert cfg.model.backbone.arch == "test"
    assert cfg.train_cfg.max_iters == 4
    assert cfg.default_hooks.checkpoint.type == "SafeCheckpointHook"


def test_checkpoints(trained):
    work = trained.work
    assert (work / "last_checkpoint").read_text().endswith("work/iter_4.pth")
    # max_keep_ckpts=1
    assert [path.name for path in work.glob("iter_*.pth")] == ["iter_4.pth"]
    scores = {
        line["step"]: line[trained.metric]
        for line in read_scalars(work)
        if trained.metric in line
    }
    assert list(scores) == [2, 4]
    best = max(scores, key=scores.get)
    name = trained.metric.replace("/", "_")
    assert [path.name for path in work.glob("best_*")] == [
        f"best_{name}_iter_{best}.pth"
    ]
    for path in work.glob("*.pth"):
        assert is_finite(path)
        state_dict = read_checkpoint(path)["state_dict"]
        assert state_dict._metadata["backbone"]["attn_types"] == ("rala",) * 4
    info = read_checkpoint(work / "iter_4.pth")["message_hub"]["runtime_info"]
    assert info["best_score"] == pytest.approx(scores[best])
    meta = read_checkpoint(work / "iter_4.pth")["meta"]
    assert meta["iter"] == 4 and meta["seed"] == 0
    assert not list(work.rglob("*.part"))


def test_weights_have_moved(trained):
    """Every parameter has a gradient: only so do Adam's states exist."""
    checkpoint = read_checkpoint(trained.work / "iter_4.pth")
    groups = checkpoint["optimizer"]["param_groups"]
    states = checkpoint["optimizer"]["state"]
    assert sum(len(group["params"]) for group in groups) == len(states)


def test_auto_scale_lr(tmp_path, shapes, seg_run):
    run = train(
        tmp_path,
        "--data-root",
        shapes,
        "--auto-scale-lr",
        options={"train_cfg.max_iters": 2, "auto_scale_lr.base_batch_size": 8},
    ).succeeded()
    scaled = [line["lr"] for line in read_scalars(tmp_path / "work") if "lr" in line]
    plain = [line["lr"] for line in read_scalars(seg_run.work) if "lr" in line]
    # Two images in place of eight.
    assert scaled == pytest.approx([lr * 2 / 8 for lr in plain[:2]])
    assert 0 < plain[0] < plain[1] < 1e-3
    # Each run says so when it starts.
    batch = "Batch of 2 images (1 process x 2) at a learning rate of"
    assert f"{batch} 0.00025, scaled from the recipe's 0.001 for 8 images." in run.out
    assert f"{batch} 0.001; the recipe means 0.001 for 8 images" in seg_run.out


def test_auto_scale_lr_needs_a_base(tmp_path, shapes):
    run = train(
        tmp_path, "--data-root", shapes, "--auto-scale-lr", child="auto_scale_lr = None"
    )
    assert run.error() == (
        f"error: --auto-scale-lr needs auto_scale_lr.base_batch_size in "
        f"'{tmp_path / 'child.py'}'; add auto_scale_lr=dict(base_batch_size=...)."
    )


def test_amp_needs_a_gpu(tmp_path, shapes):
    assert train(tmp_path, "--data-root", shapes, "--amp").error() == (
        "error: --amp needs a GPU, and torch finds none; run without --amp."
    )


CLASSES = "(disk,square,triangle,star,cross)"
HOST_RUNS = {
    "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py": {
        "model.pretrained": None,
        "model.backbone.depth": 18,
        "model.neck.in_channels": "[64,128,256,512]",
        "model.data_preprocessor.size": "(64,64)",
        "train_dataloader.dataset.pipeline.2.scale": "(64,64)",
        "train_dataloader.dataset.pipeline.3.crop_size": "(64,64)",
        "val_dataloader.dataset.pipeline.1.scale": "(64,64)",
        "train_cfg.max_iters": 1,
        "train_cfg.val_interval": 1,
        "default_hooks.checkpoint.interval": 1,
    },
    "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py": {
        "model.backbone.init_cfg": None,
        "train_dataloader.dataset.ann_file": "annotations/instances_training.json",
        "train_dataloader.dataset.data_prefix.img": "images/training",
        "train_dataloader.dataset.metainfo.classes": CLASSES,
        "train_dataloader.dataset.pipeline.2.scale": "(64,64)",
        "val_dataloader.dataset.ann_file": "annotations/instances_validation.json",
        "val_dataloader.dataset.data_prefix.img": "images/validation",
        "val_dataloader.dataset.metainfo.classes": CLASSES,
        "val_dataloader.dataset.pipeline.1.scale": "(64,64)",
        "val_evaluator.ann_file": "data/coco/annotations/instances_validation.json",
        "model.bbox_head.num_classes": 5,
        "model.test_cfg.score_thr": 0.0,  # one epoch teaches it little
        "train_cfg.max_epochs": 1,
    },
}


@pytest.mark.parametrize("config", HOST_RUNS)
def test_a_host_config_gets_our_safety(tmp_path, shapes, config):
    options = HOST_RUNS[config] | {
        "train_dataloader.batch_size": 8,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "val_dataloader.num_workers": 0,
        "val_dataloader.persistent_workers": False,
        "default_hooks.logger.interval": 1,
    }
    line = [config, "--data-root", shapes, "--work-dir", "work", *as_line(options)]
    Run("train.py", line, tmp_path).succeeded()
    work = tmp_path / "work"
    metric = "mIoU" if config.startswith("mmseg") else "coco/bbox_mAP"
    assert metric in read_scalars(work)[-1]
    last = (work / "last_checkpoint").read_text()
    assert is_finite(Path(last))
    assert len(list(work.glob(f"best_{metric.replace('/', '_')}_*.pth"))) == 1
    assert (work / "curves.png").exists()
    assert list(work.glob("*/vis_data/events.out.tfevents.*"))


def test_safety_costs(tmp_path):
    """Every switch of the config's ``safety`` has its line."""
    line = ["--step", "ravlt_test", "--size", 64, 64, "--checkpoint", "ravlt_test"]
    run = Run("analysis_tools/safety_costs.py", [*line, "--repeat", 2], tmp_path)
    out = run.succeeded().out
    for switch in read_safety(Config()):
        (value,) = re.findall(rf"^{switch}: (-?\d\S*) ", out, re.M)
        assert math.isfinite(float(value))
