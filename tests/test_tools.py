"""The command lines, in processes of their own and in a foreign directory."""

import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import decode
from running import (
    DET,
    ENV,
    ROOT,
    SEG,
    Run,
    as_line,
    is_finite,
    read_metrics,
    read_scalars,
    small,
    train,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ravlt.checkpoint import read_checkpoint


def test_log(trained):
    for iteration in range(1, 5):
        (line,) = re.findall(rf"Iter\(train\) \[{iteration}/4\].*", trained.out)
        assert re.search(r"lr: \S+  eta: 0:00:0\d  time: ", line)
        for name in trained.losses:
            assert re.search(rf" {name}: \d", line)


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
    assert cfg.train_dataloader.dataset.pipeline[0].type == "VerifyImages"
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
    train(
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


def test_distributed(tmp_path, shapes):
    """Two processes on the CPU, for which mmengine's call of CUDA is taken out."""
    shim = "import torch\ntorch.cuda.set_device = lambda device: None\n"
    (tmp_path / "sitecustomize.py").write_text(shim)
    options = small(SEG) | {
        "env_cfg.dist_cfg.backend": "gloo",
        "model_wrapper_cfg.type": "MMDistributedDataParallel",
        "model_wrapper_cfg.device_ids": None,
        "model_wrapper_cfg.broadcast_buffers": False,
    }
    line = ["bash", ROOT / "tools/dist_train.sh", SEG, "2", "--data-root", shapes]
    line += ["--work-dir", "work", *as_line(options)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = ENV | {"PYTHON": sys.executable, "PORT": str(port)}
    env["PYTHONPATH"] = f"{tmp_path}:{env.get('PYTHONPATH', '')}"
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    # Each process evaluated half of the four images, and one of them wrote.
    assert "Iter(val) [2/2]" in done.stdout
    assert len(list(tmp_path.glob("work/*/vis_data/scalars.json"))) == 1
    assert is_finite(tmp_path / "work/iter_4.pth")
    checkpoint = read_checkpoint(tmp_path / "work/iter_4.pth")
    metadata = checkpoint["state_dict"]._metadata
    assert metadata["backbone"]["attn_types"] == ("rala",) * 4


@pytest.fixture(scope="module")
def evaluated(request, seg_run, det_run, shapes) -> dict[Path, dict]:
    """Runs test.py once for each host, with all of its outputs."""
    metrics = {}
    for run, out in ((seg_run, "out"), (det_run, "out.pkl")):
        run.test(shapes, "--out", out, "--show-dir", "shown").succeeded()
        metrics[run.config] = read_metrics(run.cwd)
    return metrics


def test_metric_is_that_of_training(trained, evaluated):
    during, after = trained.val(), evaluated[trained.config]
    names = {name for name in during if "time" not in name} - {"step"}
    assert trained.metric in names
    assert names == {name for name in after if "time" not in name}
    assert {n: after[n] for n in names} == {n: during[n] for n in names}


def test_deploy_gives_the_same_metrics(trained, evaluated, shapes):
    run = trained.test(shapes, "--deploy").succeeded()
    hooks = re.search(r"\nbefore_test:\n(.*?)\n -", run.out, re.DOTALL).group(1)
    assert "DeployHook" in hooks
    plain, folded = evaluated[trained.config], read_metrics(trained.cwd)
    names = {name for name in plain if "time" not in name}
    assert trained.metric in names
    assert {n: folded[n] for n in names} == {n: plain[n] for n in names}


def test_segmentation_out_gives_the_metric(seg_run, evaluated, shapes):
    paths = sorted((seg_run.cwd / "out").iterdir())
    assert [path.name for path in paths] == [f"{i:06d}.png" for i in range(1, 5)]
    both, either = np.zeros(6), np.zeros(6)
    for path in paths:
        # Both count from 1, as the label files of ADE20K do.
        predicted = np.array(Image.open(path))
        truth = np.array(Image.open(shapes / "annotations/validation" / path.name))
        for i in range(6):
            mine, true = predicted == i + 1, truth == i + 1
            both[i] += (mine & true).sum()
            either[i] += (mine | true).sum()
        assert predicted.min() >= 1 and predicted.max() <= 6
    expected = 100 * np.nanmean(both / either)
    assert expected > 0
    assert evaluated[SEG]["mIoU"] == pytest.approx(expected, abs=0.006)


def test_detection_out_gives_the_metric(det_run, evaluated, shapes, capsys):
    with (det_run.cwd / "out.pkl").open("rb") as file:
        items = pickle.load(file)
    assert sorted(item["img_id"] for item in items) == [1, 2, 3, 4]
    found = []
    for item in items:
        predicted = item["pred_instances"]
        assert len(predicted["masks"]) == len(predicted["bboxes"]) > 0
        for box, score, label in zip(
            predicted["bboxes"].tolist(),
            predicted["scores"].tolist(),
            predicted["labels"].tolist(),
            strict=True,
        ):
            size = [box[2] - box[0], box[3] - box[1]]
            found.append(
                {
                    "image_id": item["img_id"],
                    "category_id": label + 1,
                    "bbox": box[:2] + size,
                    "score": score,
                }
            )
    truth = COCO(shapes / "annotations/instances_validation.json")
    coco = COCOeval(truth, truth.loadRes(found), "bbox")
    coco.params.maxDets = [100, 300, 1000]  # mmdet's
    coco.evaluate()
    coco.accumulate()
    coco.summarize()
    for index, name in enumerate(("mAP", "mAP_50", "mAP_75")):
        expected = round(coco.stats[index], 3)
        assert evaluated[DET][f"coco/bbox_{name}"] == pytest.approx(expected)


def test_show_dir(trained, evaluated):
    suffix = ".jpg" if trained.config == DET else ".png"
    paths = sorted((trained.cwd / "shown").rglob(f"*{suffix}"))
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as image:
            # The truth beside the prediction.
            assert image.width in (64, 128)


def test_out_is_never_overwritten(trained, evaluated, shapes):
    out = "out" if trained.config == SEG else "out.pkl"
    before = {p: p.read_bytes() for p in trained.cwd.glob(f"{out}/*")}
    error = trained.test(shapes, "--out", out).error()
    assert error == f"error: --out '{out}' exists; name another place or remove it."
    assert before == {p: p.read_bytes() for p in trained.cwd.glob(f"{out}/*")}


def test_out_of_a_detector_is_a_pickle(det_run, shapes):
    error = det_run.test(shapes, "--out", "boxes.json").error()
    assert error.startswith("error: --out 'boxes.json' must end in .pkl")


def test_tta_segmentation(seg_run, shapes, evaluated):
    seg_run.test(shapes, "--tta", "--out", "tta").succeeded()
    assert len(list((seg_run.cwd / "tta").glob("*.png"))) == 4
    assert 0 < read_metrics(seg_run.cwd)["mIoU"] <= 100


NO_MASKS = {
    "model.roi_head.mask_head": None,
    "model.roi_head.mask_roi_extractor": None,
    "test_evaluator.metric": "bbox",
}


@pytest.mark.parametrize("options", [{}, NO_MASKS], ids=["masks", "boxes"])
def test_tta_detection(det_run, shapes, options):
    out = f"tta{len(options)}.pkl"
    det_run.test(shapes, "--tta", "--out", out, options=options).succeeded()
    with (det_run.cwd / out).open("rb") as file:
        items = pickle.load(file)
    assert sorted(item["img_id"] for item in items) == [1, 2, 3, 4]
    metrics = read_metrics(det_run.cwd)
    assert -1 <= metrics["coco/bbox_mAP"] <= 1
    assert ("coco/segm_mAP" in metrics) is (not options)
    filled = 0
    for item in items:
        found = item["pred_instances"]
        assert 0 < len(found["bboxes"]) <= 100
        assert ("masks" in found) is (not options)
        if options:
            continue
        # Turned back like their boxes, masks lie inside them.
        boxes = found["bboxes"].tolist()
        for box, mask in zip(boxes, found["masks"], strict=True):
            rows, columns = np.nonzero(decode(mask))
            assert ((columns >= box[0] - 1) & (columns <= box[2] + 1)).all()
            assert ((rows >= box[1] - 1) & (rows <= box[3] + 1)).all()
            filled += len(rows) > 0
    assert (filled > 0) is (not options)


def tool(name: str, *args, cwd: Path) -> subprocess.CompletedProcess:
    line = [sys.executable, ROOT / "tools/analysis_tools" / name, *map(str, args)]
    return subprocess.run(line, cwd=cwd, env=ENV, capture_output=True, text=True)


@pytest.mark.parametrize(("config", "split"), [(SEG, "train"), (DET, "val")])
def test_browsing_the_data(tmp_path, shapes, config, split):
    """Labels are drawn: the pictures differ from the images in many pixels."""
    args = ("browse_dataset.py", config, "out", "--data-root", shapes)
    args += ("--split", split, "--number", 2)
    done = tool(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 20)) > 50
    again = tool(*args, cwd=tmp_path)
    assert again.returncode == 1
    assert "'out' exists" in again.stderr


def test_confusion_has_the_miou_of_the_test(seg_run, evaluated, shapes):
    args = ("confusion_matrix.py", SEG, "out", "confusion.png", "--data-root", shapes)
    done = tool(*args, cwd=seg_run.cwd)
    assert done.returncode == 0, done.stderr
    found = float(re.search(r"mIoU (\S+):", done.stdout).group(1))
    assert found == pytest.approx(evaluated[SEG]["mIoU"] / 100, abs=2e-4)
    assert (seg_run.cwd / "confusion.png").is_file()
    done = tool("confusion_matrix.py", DET, "out", "c.png", cwd=seg_run.cwd)
    assert "not a segmentor's; use mmdet's own tool" in done.stderr
