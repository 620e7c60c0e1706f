"""Training that was broken off goes on; a kill while writing loses nothing."""

import os
import signal
from pathlib import Path

import pytest
import torch
from running import DET, read_scalars, train

from ravlt.checkpoint import read_checkpoint

# Six iterations in one go, or three and three. Without the random flips: the state of
# the generator is not part of a checkpoint, and the forks' mmengine passes over the
# images that it has had without loading them.
SIX = {
    "train_cfg.max_iters": 6,
    "train_cfg.val_interval": 3,
    "default_hooks.checkpoint.interval": 3,
    "default_hooks.checkpoint.max_keep_ckpts": -1,
    "train_dataloader.dataset.pipeline.2.prob": 0.0,
    "train_dataloader.dataset.pipeline.3.prob": 0.0,
}
THREE = SIX | {"train_cfg.max_iters": 3}


def checkpoint(cwd: Path, iteration: int) -> dict:
    return read_checkpoint(cwd / f"work/iter_{iteration}.pth")


def assert_equal(a, b) -> None:
    """Compares nested containers of tensors exactly."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    train(cwd, "--data-root", shapes, options=SIX).succeeded()
    return cwd


@pytest.fixture(scope="module")
def halves(tmp_path_factory, shapes) -> Path:
    cwd = tmp_path_factory.mktemp("halves")
    train(cwd, "--data-root", shapes, options=THREE).succeeded()
    second = train(cwd, "--data-root", shapes, "--resume", options=SIX).succeeded()
    assert "[1/6]" not in second.out and "Iter(train) [4/6]" in second.out
    return cwd


def test_resumed_run_is_the_uninterrupted_one(whole, halves):
    for iteration in (3, 6):
        a, b = checkpoint(whole, iteration), checkpoint(halves, iteration)
        for key in ("state_dict", "optimizer", "param_schedulers"):
            assert_equal(a[key], b[key])


def test_history_and_best_score_carry_over(whole, halves):
    a, b = (checkpoint(cwd, 6)["message_hub"] for cwd in (whole, halves))
    for name in ("best_score", "iter", "max_iters"):
        assert a["runtime_info"][name] == b["runtime_info"][name]
    for name in ("train/loss", "train/lr", "val/mIoU"):
        values = a["log_scalars"][name].data[0].tolist()
        # The checkpoint of an iteration is written before or, in the original mmengine,
        # after it is evaluated.
        assert len(values) in ((1, 2) if name == "val/mIoU" else (6,))
        assert values == b["log_scalars"][name].data[0].tolist()
    best = [sorted(p.name for p in cwd.glob("work/best_*")) for cwd in (whole, halves)]
    assert best[0] == best[1] and len(best[0]) == 1


def test_scheduled_learning_rate_goes_on(whole, halves):
    rates = [
        [
            (line["step"], line["lr"])
            for line in read_scalars(cwd / "work")
            if "lr" in line
        ]
        for cwd in (whole, halves)
    ]
    assert rates[0] == rates[1]
    assert [step for step, _ in rates[0]] == [1, 2, 3, 4, 5, 6]
    assert len({rate for _, rate in rates[0]}) == 6


def test_resuming_from_a_named_checkpoint(tmp_path, shapes, whole):
    run = train(
        tmp_path,
        "--data-root",
        shapes,
        "--resume",
        whole / "work/iter_3.pth",
        options=SIX,
    ).succeeded()
    assert "Iter(train) [3/6]" not in run.out and "Iter(train) [4/6]" in run.out
    assert_equal(
        checkpoint(whole, 6)["state_dict"], checkpoint(tmp_path, 6)["state_dict"]
    )


def test_detector_resumes(tmp_path, shapes):
    for more, first in (([], 1), (["--resume"], 3)):
        options = {"train_cfg.max_iters": first + 1, "train_cfg.val_interval": 100}
        run = train(tmp_path, "--data-root", shapes, *more, config=DET, options=options)
        run.succeeded()
        assert f"Iter(train) [{first}/{first + 1}]" in run.out
        assert f"Iter(train) [{first - 1}/" not in run.out
    meta = checkpoint(tmp_path, 4)["meta"]
    assert meta["iter"] == 4


def test_interrupt_and_resume(tmp_path, shapes):
    options = {"train_cfg.max_iters": 1000, "train_cfg.val_interval": 1000}
    run = train(tmp_path, "--data-root", shapes, options=options)
    run.wait_for("Iter(train) [   4/1000]")
    assert run.interrupt() == 1
    assert "Traceback" not in run.err + run.out
    assert run.err.splitlines()[-1] == (
        "interrupted: continue with --resume and the same --work-dir."
    )
    last = Path((tmp_path / "work/last_checkpoint").read_text())
    done = int(last.stem.removeprefix("iter_"))
    assert done >= 2
    options = {"train_cfg.max_iters": done + 2, "train_cfg.val_interval": 1000}
    run = train(tmp_path, "--data-root", shapes, "--resume", options=options)
    run.succeeded()
    assert f"Iter(train) [{done}/" not in run.out
    assert checkpoint(tmp_path, done + 2)["meta"]["iter"] == done + 2


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle_of_writing() -> None:
    """Half of the second checkpoint reaches the disk."""
    fsync, sizes = os.fsync, []

    def fail(handle: int) -> None:
        sizes.append(os.fstat(handle).st_size)
        if len(sizes) == 2:
            os.ftruncate(handle, sizes[1] // 2)
            die()
        fsync(handle)

    os.fsync = fail


def die_before_renaming() -> None:
    replace = os.replace

    def fail(source, target) -> None:
        if str(target).endswith("iter_4.pth"):
            die()
        replace(source, target)

    os.replace = fail


def die_after_renaming() -> None:
    replace = os.replace

    def fail(source, target) -> None:
        replace(source, target)
        if str(target).endswith("iter_4.pth"):
            die()

    os.replace = fail


def die_before_removing() -> None:
    os.remove = lambda path: die()


@pytest.mark.parametrize(
    ("prepare", "left", "resumed"),
    [
        (die_in_the_middle_of_writing, {2}, 2),
        (die_before_renaming, {2}, 2),
        (die_after_renaming, {2, 4}, 2),
        (die_before_removing, {2, 4}, 4),
    ],
)
def test_kill_while_writing_a_checkpoint(tmp_path, shapes, prepare, left, resumed):
    options = {
        "train_cfg.max_iters": 6,
        "train_cfg.val_interval": 100,
        "default_hooks.checkpoint.max_keep_ckpts": 1,
    }
    run = train(tmp_path, "--data-root", shapes, options=options, prepare=prepare)
    assert run.wait() == -signal.SIGKILL
    # Whole or absent.
    names = {path.name for path in tmp_path.glob("work/*.pth")}
    assert names == {f"iter_{iteration}.pth" for iteration in left}
    for iteration in left:
        assert checkpoint(tmp_path, iteration)["meta"]["iter"] == iteration
    run = train(tmp_path, "--data-root", shapes, "--resume", options=options)
    run.succeeded()
    assert f"Iter(train) [{resumed}/6]" not in run.out
    assert f"Iter(train) [{resumed + 1}/6]" in run.out
    assert checkpoint(tmp_path, 6)["meta"]["iter"] == 6


@pytest.mark.parametrize("pointer", ["", "work/iter_99.pth"])
def test_resume_with_a_broken_pointer(tmp_path, shapes, whole, pointer):
    work = tmp_path / "work"
    work.mkdir()
    for iteration, age in ((6, 100), (3, 0)):  # the newest file, not the longest run
        path = work / f"iter_{iteration}.pth"
        path.write_bytes((whole / "work" / path.name).read_bytes())
        os.utime(path, (1e9 - age, 1e9 - age))
    (work / "last_checkpoint").write_text(pointer)
    options = SIX | {"train_cfg.max_iters": 4}
    run = train(tmp_path, "--data-root", shapes, "--resume", options=options)
    run.succeeded()
    assert "Iter(train) [3/4]" not in run.out and "Iter(train) [4/4]" in run.out


def test_resume_without_anything_to_resume_is_a_new_run(tmp_path, shapes):
    options = THREE | {"train_cfg.max_iters": 1}
    run = train(tmp_path, "--data-root", shapes, "--resume", options=options)
    run.succeeded()
    assert "Iter(train) [1/1]" in run.out
