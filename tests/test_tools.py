"""The command lines, in processes of their own and in a foreign directory."""

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from running import DET, ENV, ROOT, SEG, Run, as_line, read_scalars, small, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ravlt.checkpoint import read_checkpoint


@dataclass
class Trained:
    """A training run that has ended, and what belongs to its host."""

    config: Path
    cwd: Path
    out: str
    metric: str
    losses: set[str]

    @property
    def work(self) -> Path:
        return self.cwd / "work"

    def val(self) -> dict:
        """The last evaluation."""
        return [line for line in read_scalars(self.work) if self.metric in line][-1]

    def test(self, data: Path, *args, options: dict | None = None) -> Run:
        """Starts test.py; its work directory is new."""
        work = f"test{len(list(self.cwd.glob('test*')))}"
        options = small(self.config) | (options or {})
        line = [self.config, "work/iter_4.pth", "--data-root", data]
        line += ["--work-dir", work, *args, *as_line(options)]
        return Run("test.py", line, self.cwd)


def read_metrics(cwd: Path) -> dict:
    """The metrics that the last run of test.py wrote."""
    work = max(cwd.glob("test*"), key=os.path.getmtime)
    (path,) = work.glob("*/*.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def seg_run(tmp_path_factory, shapes) -> Trained:
    """A segmentor, trained as a user would do it."""
    cwd = tmp_path_factory.mktemp("seg")
    line = [sys.executable, ROOT / "tools/train.py", SEG, "--work-dir", "work"]
    line += ["--data-root", shapes, *as_line(small(SEG))]
    done = subprocess.run(line, cwd=cwd, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return Trained(SEG, cwd, done.stdout, "mIoU", {"loss", "decode.loss_ce"})


@pytest.fixture(scope="module")
def det_run(tmp_path_factory, shapes) -> Trained:
    """A detector."""
    cwd = tmp_path_factory.mktemp("det")
    run = train(cwd, "--data-root", shapes, config=DET).succeeded()
    losses = {"loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}
    return Trained(DET, cwd, run.out, "coco/bbox_mAP", losses | {"loss_mask"})


@pytest.fixture(params=["seg_run", "det_run"])
def trained(request) -> Trained:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def seg(seg_run) -> Path:
    return seg_run.work


def is_finite(path: Path) -> bool:
    weights = read_checkpoint(path)["state_dict"].values()
    return all(bool(torch.isfinite(w).all()) for w in weights)


# ------------------------------------------------------------------------ training


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


# ---------------------------------------------------------------------- evaluation


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


def test_tta_detection(det_run, shapes):
    det_run.test(shapes, "--tta", "--out", "tta.pkl", options=NO_MASKS).succeeded()
    with (det_run.cwd / "tta.pkl").open("rb") as file:
        items = pickle.load(file)
    assert sorted(item["img_id"] for item in items) == [1, 2, 3, 4]
    assert all(len(item["pred_instances"]["bboxes"]) > 0 for item in items)
    assert -1 <= read_metrics(det_run.cwd)["coco/bbox_mAP"] <= 1


def test_tta_does_not_merge_masks(det_run, shapes):
    error = det_run.test(shapes, "--tta").error()
    assert error.startswith("error: --tta merges boxes only")


# ------------------------------------------------------------- what a user can mend


@pytest.mark.parametrize(
    ("option", "expected"),
    {
        "arch": (
            "arch=xl",
            "arch='xl' is unknown; use one of ['b', 'l', 's', 't', 'test'] or a dict",
        ),
        "attn_types": (
            "attn_types=[rala,rala,cosine,rala]",
            "attn_types names the unknown attention 'cosine'; use [",
        ),
        "heads": (
            "arch.num_heads=[3,2,4,5]",
            "embed_dims[0]=32 is not divisible by num_heads[0]=3; change",
        ),
        "head dimension": (
            "arch.num_heads=[1,2,64,5]",
            "embed_dims[2]=128 over num_heads[2]=64 gives a head dimension of 2,",
        ),
        "stages": (
            "arch.depths=[1,2,3]",
            "depths=(1, 2, 3) has 3 entries, but RAVLT has 4 stages; give 4.",
        ),
        "attn_types' stages": (
            "attn_types=[rala,rala]",
            "attn_types=('rala', 'rala') has 2 entries, but RAVLT has 4 stages",
        ),
        "out_indices": (
            "out_indices=[0,1,2,4]",
            "out_indices=(0, 1, 2, 4) names a stage that does not exist; use 0 to 3.",
        ),
    }.values(),
    ids=lambda value: value.partition("=")[0],
)
def test_wrong_backbone_is_one_line(tmp_path, shapes, option, expected):
    option = f"model.backbone.{option}"
    config = DET if "arch=" in option else SEG
    line = [config, "--data-root", shapes, "--cfg-options", option]
    error = Run("train.py", line, tmp_path).error()
    assert error.startswith(f"error: {expected}")


@pytest.mark.parametrize("tool", ["train.py", "test.py"])
def test_missing_config(tmp_path, tool):
    line = ["no/such.py"] + ["some.pth"] * (tool == "test.py")
    assert Run(tool, line, tmp_path).error() == (
        "error: Config 'no/such.py' does not exist; correct the path."
    )


@pytest.mark.parametrize("tool", ["train.py", "test.py"])
@pytest.mark.parametrize("config", [SEG, DET], ids=["seg", "det"])
def test_missing_data_root(tmp_path, tool, config):
    line = [config] + ["some.pth"] * (tool == "test.py")
    loader = tool.removesuffix(".py") + "_dataloader"
    assert Run(tool, line, tmp_path).error() == (
        f"error: {loader}.dataset.data_root 'data/shapes' does not exist; give the "
        f"data set's folder with --data-root."
    )


@pytest.mark.parametrize(
    "config",
    [
        "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py",
        "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py",
    ],
)
def test_missing_data_root_of_a_host_config(tmp_path, config):
    error = Run("train.py", [config], tmp_path).error()
    root = (
        "data/coco/" if config.startswith("mmdet") else "data/ade/ADEChallengeData2016"
    )
    assert error == (
        f"error: train_dataloader.dataset.data_root '{root}' does not exist; give the "
        f"data set's folder with --data-root."
    )


@pytest.fixture
def data(tmp_path, shapes) -> Path:
    """A copy of the data set, to damage."""
    return Path(shutil.copytree(shapes, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("config", "place", "key"),
    [
        (
            DET,
            "annotations/instances_training.json",
            "train_dataloader.dataset.ann_file",
        ),
        (
            DET,
            "annotations/instances_validation.json",
            "val_dataloader.dataset.ann_file",
        ),
        (DET, "images/training", "train_dataloader.dataset.data_prefix.img"),
        (SEG, "images/training", "train_dataloader.dataset.data_prefix.img_path"),
        (
            SEG,
            "annotations/training",
            "train_dataloader.dataset.data_prefix.seg_map_path",
        ),
    ],
)
def test_missing_annotations_or_images(tmp_path, data, config, place, key):
    if place.endswith("json"):
        (data / place).unlink()
    else:
        shutil.rmtree(data / place)
    error = train(tmp_path / "run", "--data-root", data, config=config).error()
    assert error.startswith(f"error: {key} '{data / place}")
    assert error.endswith(
        "does not exist; correct that key, or give the data set's folder with "
        "--data-root."
    )


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    assert len(content) > 100
    path.write_bytes(content[: len(content) * 2 // 3] if how == "cut" else b"junk" * 50)


# Eight iterations of two see every one of the 16 images.
SEE_ALL = {"train_cfg.max_iters": 8, "train_cfg.val_interval": 8}


@pytest.mark.parametrize(
    ("config", "place", "how", "reason", "workers"),
    [
        (SEG, "images/training/000005.jpg", "junk", "it is no image", 0),
        (SEG, "images/training/000005.jpg", "cut", "image file is truncated", 1),
        (SEG, "annotations/training/000005.png", "cut", "truncated", 0),
        (DET, "images/training/000005.jpg", "cut", "image file is truncated", 0),
        (DET, "images/training/000005.jpg", "junk", "it is no image", 1),
    ],
)
def test_broken_training_image(tmp_path, data, config, place, how, reason, workers):
    damage(data / place, how)
    options = SEE_ALL | {"train_dataloader.num_workers": workers}
    run = train(tmp_path / "run", "--data-root", data, config=config, options=options)
    error = run.error()
    assert error.startswith(f"error: Cannot decode '{data / place}' (")
    assert reason in error and "bad_images='skip'" in error


@pytest.mark.parametrize("config", [SEG, DET], ids=["seg", "det"])
def test_skipping_broken_training_images(tmp_path, data, config):
    places = [f"images/training/{i:06d}.jpg" for i in (2, 5, 6)]
    for place in places:
        damage(data / place, "cut")
    options = SEE_ALL | {"bad_images": "skip", "train_cfg.val_interval": 100}
    run = train(tmp_path / "run", "--data-root", data, config=config, options=options)
    run.succeeded()
    for place in places:
        assert f"WARNING - Skipped a sample: cannot decode '{data / place}'" in run.out
    assert "Iter(train) [8/8]" in run.out
    assert is_finite(tmp_path / "run/work/iter_8.pth")


@pytest.mark.parametrize("config", [SEG, DET], ids=["seg", "det"])
def test_broken_evaluation_image_is_an_error_even_when_skipping(tmp_path, data, config):
    place = data / "images/validation/000003.jpg"
    damage(place, "cut")
    run = train(
        tmp_path / "run",
        "--data-root",
        data,
        config=config,
        options={"bad_images": "skip"},
    )
    assert run.error().startswith(f"error: Cannot decode '{place}' (")
    # What was reached before is kept.
    assert is_finite(tmp_path / "run/work/iter_2.pth")


def test_unknown_bad_images(tmp_path, shapes):
    run = train(tmp_path, "--data-root", shapes, options={"bad_images": "ignore"})
    assert run.error() == (
        "error: bad_images='ignore' is unknown; use one of ('error', 'skip')."
    )


class Attack:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def load_line(way: str, path: Path, data: Path) -> Run:
    """Makes a tool read a checkpoint in one of the ways there are."""
    cwd = data.parent / "run"
    if way == "test.py":
        return Run("test.py", [SEG, path, "--data-root", data], cwd)
    if way == "--resume":
        return train(cwd, "--data-root", data, "--resume", path)
    key = "load_from" if way == "load_from" else "model.backbone.init_cfg.checkpoint"
    options = {key: path}
    if way == "init_cfg":
        options["model.backbone.init_cfg.type"] = "Pretrained"
    return train(cwd, "--data-root", data, options=options)


WAYS = ["test.py", "--resume", "init_cfg", "load_from"]


# The ways of writing and of reading, not all their pairs.
@pytest.mark.parametrize(
    ("way", "kind"),
    [(way, "torch") for way in WAYS]
    + [("test.py", "torch before 1.6"), ("test.py", 2), ("--resume", 4)],
)
def test_hostile_checkpoint_is_refused(tmp_path, data, way, kind):
    path, proof = tmp_path / "hostile.pth", tmp_path / "proof"
    content = {"state_dict": {"a": torch.zeros(1)}, "meta": Attack(proof)}
    if isinstance(kind, int):  # a pickle protocol
        path.write_bytes(pickle.dumps(content["meta"], protocol=kind))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    error = load_line(way, path, data).error()
    assert not proof.exists()
    if kind == 4:  # which torch does not even read
        assert error.startswith(f"error: Cannot read checkpoint '{path}', which is")
    else:
        assert error.startswith(
            f"error: Refused checkpoint '{path}': besides tensors it holds "
            f"'{os.mkdir.__module__}.mkdir', and unpickling that could run code;"
        )
    # It was dangerous.
    if isinstance(kind, int):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert proof.exists()


@pytest.mark.parametrize(
    ("way", "left"),
    [(way, 0.5) for way in WAYS] + [("test.py", left) for left in (0, 100, 0.99)],
)
def test_truncated_checkpoint(tmp_path, data, seg, way, left):
    path = tmp_path / "cut.pth"
    content = (seg / "iter_4.pth").read_bytes()
    path.write_bytes(content[: int(left * len(content)) if left < 1 else left])
    error = load_line(way, path, data).error()
    assert error.startswith(
        f"error: Cannot read checkpoint '{path}', which is truncated or no PyTorch file"
    )


@pytest.mark.parametrize("way", WAYS)
def test_missing_checkpoint(tmp_path, data, way):
    path = tmp_path / "none.pth"
    error = load_line(way, path, data).error()
    named = "--resume" if way == "--resume" else "Checkpoint"
    assert error.startswith(f"error: {named} '{path}' does not exist; ")


@pytest.mark.parametrize("config", [SEG, DET], ids=["seg", "det"])
def test_non_finite_loss(tmp_path, shapes, config):
    # The third iteration makes weights of 1e30, and the fourth sees them.
    explode = (
        "param_scheduler = [dict(type='MultiStepLR', milestones=[2], gamma=1e33, "
        "by_epoch=False)]"
    )
    options = {"train_cfg.val_interval": 100}
    run = train(
        tmp_path, "--data-root", shapes, config=config, child=explode, options=options
    )
    error = run.error()
    assert error.startswith("error: The loss is not finite at iteration 4 (loss=")
    term = "decode.loss_ce=" if config == SEG else "loss_rpn_cls="
    good = tmp_path / "work/iter_2.pth"
    assert term in error and f"the last good checkpoint is {good}; lower" in error
    assert (tmp_path / "work/last_checkpoint").read_text() == str(good)
    good = tmp_path / good
    assert is_finite(good) and not list(tmp_path.glob("work/iter_[34].pth"))
