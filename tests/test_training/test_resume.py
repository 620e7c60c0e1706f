"""Training that was broken off goes on as if nothing had been; nothing is lost."""

import multiprocessing
import os
import signal
import stat
from functools import partial
from pathlib import Path

import pytest
from mmengine.runner import ValLoop

from helpers.run_states import assert_equal, read_state
from helpers.tool_runs import DET, SEG, read_scalars, train
from ravlt.training.loops.train_loops import SafeIterBasedTrainLoop
from ravlt.weights.checkpoint import read_checkpoint

pytestmark = pytest.mark.integration

# Six iterations: in one go, or broken off again and again. Images are flipped at
# random, by two workers that load ahead.
SIX = {
    "train_cfg.max_iters": 6,
    "train_cfg.val_interval": 3,
    "default_hooks.checkpoint.interval": 3,
    "default_hooks.checkpoint.max_keep_ckpts": -1,
    "train_dataloader.num_workers": 2,
    "train_dataloader.persistent_workers": True,
    "val_dataloader.num_workers": 1,
}
EMA = "custom_hooks = [dict(type='EMAHook')]"
CONFIGS = pytest.mark.parametrize("config", [SEG, DET], ids=["seg", "det"])


def checkpoint(cwd: Path, iteration: int) -> dict:
    return read_checkpoint(cwd / f"work/iter_{iteration}.pth")


def send(number: int) -> None:
    """Gives a signal to this process and to its workers, as schedulers do."""
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)
    os.kill(os.getpid(), number)


def signal_in_training(number: int, iteration: int) -> None:
    run_iter = SafeIterBasedTrainLoop.run_iter

    def run(self, data_batch) -> None:
        if self.iter == iteration:
            send(number)
        run_iter(self, data_batch)

    SafeIterBasedTrainLoop.run_iter = run


def signal_in_evaluation(number: int) -> None:
    run_iter = ValLoop.run_iter

    def run(self, *args) -> None:
        send(number)
        run_iter(self, *args)

    ValLoop.run_iter = run


def losses(cwd: Path) -> list[tuple]:
    """What was logged of training, without the clock."""
    own = ("time", "data_time", "memory")
    return [
        tuple((k, v) for k, v in sorted(line.items()) if k not in own)
        for line in read_scalars(cwd / "work")
        if "loss" in line
    ]


@CONFIGS
def test_a_run_broken_off_again_and_again_is_the_whole_one(tmp_path, shapes, config):
    def start(name: str, *args, **run):
        line = [tmp_path / name, "--data-root", shapes, *args]
        return train(*line, config=config, child=EMA, options=SIX, **run)

    start("whole").succeeded()
    # A second one is the same, for the seed is.
    start("twin").succeeded()
    assert losses(tmp_path / "twin") == losses(tmp_path / "whole")
    final = [tmp_path / name / "work/iter_6.pth" for name in ("whole", "twin", "parts")]
    assert_equal(read_state(final[1]), read_state(final[0]))

    term, kill = signal.SIGTERM, signal.SIGKILL
    faults = [
        (partial(signal_in_training, term, 1), 143, "interrupted.pth"),
        (partial(signal_in_evaluation, term), 143, "interrupted.pth"),
        (partial(signal_in_evaluation, kill), -kill, "interrupted.pth"),
        (partial(signal_in_training, term, 3), 143, "interrupted.pth"),
        (partial(signal_in_training, kill, 5), -kill, "interrupted.pth"),
    ]
    for prepare, status, newest in faults:
        run = start("parts", "--resume", prepare=prepare)
        assert run.wait() == status, run.err
        pointer = tmp_path / "parts/work/last_checkpoint"
        assert Path(pointer.read_text()).name == newest
        if status == 143:
            assert "Traceback" not in run.out + run.err
            line = run.err.splitlines()[-1]
            assert line.startswith("stopped by SIGTERM after iteration ")
            assert line.endswith("continue with --resume and the same --work-dir.")
    start("parts", "--resume").succeeded()
    assert not list(tmp_path.glob("parts/work/interrupted.pth"))
    assert_equal(read_state(final[2]), read_state(final[0]))
    parts = losses(tmp_path / "parts")
    assert len(parts) == 7  # iteration 5 was killed after it had been logged
    assert sorted(set(parts), key=lambda line: dict(line)["step"]) == losses(
        tmp_path / "whole"
    )


def test_interrupt_and_resume(tmp_path, shapes):
    options = {"train_cfg.max_iters": 1000, "train_cfg.val_interval": 1000}
    run = train(tmp_path, "--data-root", shapes, options=options)
    run.wait_for("Iter(train) [   4/1000]")
    assert run.interrupt() == 1
    assert "Traceback" not in run.err + run.out
    assert run.err.splitlines()[-1] == (
        "interrupted: continue with --resume and the same --work-dir, from the last "
        "checkpoint."
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
        if stat.S_ISREG(os.fstat(handle).st_mode):
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


def test_resume_without_anything_to_resume_is_a_new_run(tmp_path, shapes):
    options = SIX | {"train_cfg.max_iters": 1}
    run = train(tmp_path, "--data-root", shapes, "--resume", options=options)
    run.succeeded()
    assert "Iter(train) [1/1]" in run.out
