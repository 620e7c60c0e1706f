"""What a user can mend is one line: through the command lines, for every error."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from helpers.hostile_checkpoints import Call
from helpers.tool_runs import DET, SEG, Run, is_finite, train
from ravlt.data.check import verify

pytestmark = pytest.mark.integration


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
    run = Run("train.py", line, tmp_path)
    assert run.error().startswith(f"error: {expected}")
    assert not run.out and not (tmp_path / "work_dirs").exists()


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
    assert error.startswith(f"error: Cannot use '{data / place}' (")
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
        assert f"WARNING - Skipped a sample: cannot use '{data / place}'" in run.out
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
    assert run.error().startswith(f"error: Cannot use '{place}' (")
    # What was reached before is kept.
    assert is_finite(tmp_path / "run/work/iter_2.pth")


def count_checks() -> None:
    """Write a line for each image that is decoded for its check."""
    decode = verify.check_image

    def counted(sample):
        with open("checked.txt", "a") as file:
            file.write(f"{sample.image}\n")
        return decode(sample)

    verify.check_image = counted


@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_checked_once_for_all_runs(tmp_path, shapes, workers):
    options = SEE_ALL | {"train_dataloader.num_workers": workers}
    options["train_cfg.max_iters"] = 16  # two epochs
    checked = tmp_path / "checked.txt"
    for line in (["--work-dir", "work"], ["--work-dir", "other"]):
        line = ["--data-root", shapes, *line]
        train(tmp_path, *line, options=options, prepare=count_checks).succeeded()
        names = checked.read_text().splitlines()
        images = [*shapes.glob("images/*/*.jpg")]
        assert len(images) == 20 and sorted(names) == sorted(map(str, images))
    off = ["--data-root", shapes, "--work-dir", "off/work"]
    options |= {"bad_images": "off", "train_cfg.max_iters": 2}
    train(tmp_path, *off, options=options, prepare=count_checks).succeeded()
    assert len(checked.read_text().splitlines()) == 20


def test_unknown_bad_images(tmp_path, shapes):
    run = train(tmp_path, "--data-root", shapes, options={"bad_images": "ignore"})
    assert run.error() == (
        "error: bad_images='ignore' is unknown; use one of ('error', 'skip', 'off')."
    )


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
    content = {"state_dict": {"a": torch.zeros(1)}, "meta": Call(os.mkdir, str(proof))}
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
        f"error: Cannot read checkpoint '{path}', which is truncated or not a PyTorch "
        f"file"
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
