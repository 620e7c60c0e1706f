import os

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from ravlt.training.checkpoints.hook import SafeCheckpointHook, _DeferredRemoval


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


class Late(Rising):
    """The first evaluation has nothing to score, as a detector without detections."""

    def compute_metrics(self, results) -> dict:
        found = super().compute_metrics(results)
        return found if self.score > 1 else {"other": 1.0}


def train_toy(work_dir, hook: dict, metric=Rising) -> SafeCheckpointHook:
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
        val_evaluator=[metric()],
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


def test_a_metric_that_is_not_there_yet(tmp_path):
    hook = train_toy(tmp_path, KEEP_ONE, Late)
    assert os.path.basename(hook.best_ckpt_path) == "best_score_iter_3.pth"


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
