import os
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from ravlt.engine.hooks import (
    CurveHook,
    SafeCheckpointHook,
    _DeferredRemoval,
    _running_mean,
)

# ------------------------------------------------------------------ SafeCheckpointHook


class Toy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs, mode="tensor"):
        if mode == "loss":
            return {"loss": (self.weight * sum(inputs)) ** 2}
        return [self.weight]


class Rising(BaseMetric):
    """Every evaluation is better than the one before."""

    score = 0

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        self.score += 1
        return {"score": self.score}


def train_toy(work_dir, hook: dict) -> SafeCheckpointHook:
    data = dict(
        dataset=[{"inputs": i} for i in range(4)],
        sampler=dict(type="InfiniteSampler"),
        batch_size=2,
        num_workers=0,
    )
    runner = Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=data,
        val_dataloader=data | dict(sampler=dict(type="DefaultSampler")),
        val_evaluator=[Rising()],
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=3, val_interval=1),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01)),
        default_hooks=dict(
            checkpoint=dict(
                type="SafeCheckpointHook", by_epoch=False, interval=1, **hook
            )
        ),
        default_scope="mmengine",
        experiment_name=str(work_dir),
        log_level="ERROR",
    )
    runner.train()
    return next(h for h in runner.hooks if isinstance(h, SafeCheckpointHook))


KEEP_ONE = dict(max_keep_ckpts=1, save_best="score", rule="greater")


@pytest.fixture
def events(monkeypatch) -> list:
    """Writing and removing of checkpoints, in their order."""
    events = []
    put, remove = LocalBackend.put, os.remove

    def spy_put(self, obj, filepath) -> None:
        put(self, obj, filepath)
        events.append(("write", os.path.basename(filepath)))

    def spy_remove(path) -> None:
        remove(path)
        events.append(("remove", os.path.basename(path)))

    monkeypatch.setattr(LocalBackend, "put", spy_put)
    monkeypatch.setattr(os, "remove", spy_remove)
    return events


def test_old_checkpoints_go_when_the_new_one_is_written(tmp_path, events):
    train_toy(tmp_path, KEEP_ONE)
    left = {path.name for path in tmp_path.glob("*.pth")}
    assert left == {"iter_3.pth", "best_score_iter_3.pth"}
    for kind in ("iter_", "best_score_iter_"):
        for old, new in ((1, 2), (2, 3)):
            removed = events.index(("remove", f"{kind}{old}.pth"))
            assert events.index(("write", f"{kind}{new}.pth")) < removed


@pytest.mark.parametrize("name", ["iter_2.pth", "best_score_iter_2.pth"])
def test_old_checkpoint_stays_when_writing_fails(tmp_path, monkeypatch, name):
    put = LocalBackend.put

    def fail(self, obj, filepath) -> None:
        if os.path.basename(filepath) == name:
            raise OSError("No space left on device")
        put(self, obj, filepath)

    monkeypatch.setattr(LocalBackend, "put", fail)
    with pytest.raises(OSError, match="No space left"):
        train_toy(tmp_path, KEEP_ONE)
    old = tmp_path / name.replace("2", "1")
    assert torch.load(old, weights_only=False)["state_dict"]["weight"].isfinite()


def test_without_a_limit_nothing_goes(tmp_path, events):
    hook = train_toy(tmp_path, {})
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        f"iter_{i}.pth" for i in (1, 2, 3)
    }
    assert isinstance(hook.file_backend, _DeferredRemoval)
    assert not any(kind == "remove" for kind, _ in events)


def test_deferred_removal(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text("x")
    backend = _DeferredRemoval()
    for path in (*paths[:2], tmp_path / "gone"):
        backend.remove(path)
    assert all(path.exists() for path in paths)
    # b has been written anew under its old name.
    backend.flush(keep={str(paths[1]), None})
    assert [path.exists() for path in paths] == [False, True, True]
    backend.flush(keep=set())
    assert paths[1].exists()


# --------------------------------------------------------------------------- CurveHook


def test_running_mean_is_the_weighted_mean():
    values = np.random.default_rng(0).random(200)
    # Two per cent of 200 are 4 values.
    decay = 1 - 1 / 4
    expected = []
    for n in range(1, 201):
        weights = decay ** np.arange(n)[::-1]
        expected.append((weights * values[:n]).sum() / weights.sum())
    assert _running_mean(values) == pytest.approx(expected, rel=1e-12)


def test_running_mean_of_a_constant_and_of_a_short_run():
    assert _running_mean([0.3] * 500) == pytest.approx([0.3] * 500)
    assert _running_mean([1.0, 5.0, 2.0]) == [1.0, 5.0, 2.0]
    assert _running_mean([]) == []


def test_running_mean_passes_over_what_is_not_finite():
    values = [0.3, float("nan"), 0.3, float("inf"), 0.3]
    assert _running_mean(values * 50) == pytest.approx([0.3] * 250)


@pytest.fixture
def runner(tmp_path):
    return SimpleNamespace(iter=6, work_dir=str(tmp_path), rank=0)


@pytest.fixture
def drawn(monkeypatch) -> deque:
    """Figures as they are saved, newest last."""
    drawn = deque()
    save = Figure.savefig

    def spy(self, *args, **kwargs) -> None:
        drawn.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return drawn


def history(values) -> HistoryBuffer:
    return HistoryBuffer(values, [1] * len(values))


def test_curves_show_what_was_logged(runner, tmp_path, drawn):
    scalars = {
        "train/loss": history([4.0, 3.0, 2.0]),
        "train/loss_cls": history([2.0, 1.0, 1.0]),
        "train/lr": history([1e-3] * 3),
        "train/time": history([0.1] * 3),
        "val/coco/bbox_mAP": history([0.1, 0.2]),
        "val/time": history([0.1, 0.1]),
    }
    runner.message_hub = SimpleNamespace(log_scalars=scalars)
    CurveHook().after_train(runner)
    assert (tmp_path / "curves.png").stat().st_size > 1000
    losses, metrics = drawn[-1].axes
    lines = {line.get_label(): line for line in losses.lines}
    assert lines.keys() == {"loss", "loss_cls"}
    # The history ends at the sixth iteration.
    assert lines["loss"].get_xdata().tolist() == [4, 5, 6]
    assert lines["loss"].get_ydata().tolist() == [4.0, 3.0, 2.0]
    (line,) = metrics.lines
    assert line.get_label() == "coco/bbox_mAP"
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (
        [1, 2],
        [0.1, 0.2],
    )


def test_only_the_first_process_draws(runner, tmp_path, drawn):
    runner.message_hub = SimpleNamespace(log_scalars={})
    runner.rank = 1
    CurveHook().after_val_epoch(runner)
    assert not drawn
    runner.rank = 0
    CurveHook("other.png").after_val_epoch(runner)
    assert (tmp_path / "other.png").exists() and len(drawn) == 1
