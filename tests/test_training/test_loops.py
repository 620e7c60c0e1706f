"""A run that is stopped anywhere and goes on is, to the last bit, one that was not.

The toy's data set, model and loss draw from every generator there is.
"""

import hashlib
import os
import random
import signal

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from torch import nn
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from helpers.run_states import assert_equal, read_state
from ravlt.training.guards.signals import Terminated, noticing_sigterm
from ravlt.weights.checkpoint import use_safe_loading

pytestmark = pytest.mark.integration


def digest_of_generators() -> str:
    state = (random.getstate(), np.random.get_state()[1:], torch.get_rng_state())
    return hashlib.sha256(repr(state).encode() + bytes(state[2].tolist())).hexdigest()


class Drawn(Dataset):
    """Samples that no two draws give again, and the generators' state behind each."""

    metainfo = {"classes": ("a",)}

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> dict:
        value = index + random.random() + np.random.rand() + torch.rand(()).item()
        return {"inputs": value, "index": index, "state": digest_of_generators()}

    def get_data_info(self, index: int) -> dict:
        return {"width": 2, "height": 1 + 2 * (index % 3 == 0)}


class Noisy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0, 1, 4))

    def forward(self, inputs, index, state, mode="tensor"):
        if mode != "loss":
            return [self.weight.detach().clone()]
        noise = nn.functional.dropout(self.weight) * (
            np.random.rand() + random.random()
        )
        return {"loss": ((noise - sum(inputs)) ** 2).mean()}


class WeightSum(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results.extend(float(weight.sum()) for weight in data_samples)

    def compute_metrics(self, results) -> dict:
        torch.rand(random.randrange(9))  # an evaluation draws as it likes
        return {"score": sum(results)}


class Watch(Hook):
    """Notes what every iteration got, and gives the signal at a place."""

    priority = "VERY_HIGH"

    def __init__(self, at: tuple[str, int] | None = None) -> None:
        self.at = at
        self.seen, self.scores = {}, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.seen[runner.iter] = batch_idx, data_batch, digest_of_generators()
        self._signal("train", runner.iter)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.scores[runner.iter] = metrics["score"]

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._signal("val", runner.iter)

    def _signal(self, *place) -> None:
        if place == self.at:
            self.at = None
            os.kill(os.getpid(), signal.SIGTERM)


LOOPS = {
    "epochs": dict(type="SafeEpochBasedTrainLoop", max_epochs=4, val_interval=2),
    "iterations": dict(type="SafeIterBasedTrainLoop", max_iters=16, val_interval=8),
}
PLAIN = dict(num_workers=0)
WORKERS = dict(num_workers=2)
PERSISTENT = dict(num_workers=2, persistent_workers=True)
BY_ASPECT = dict(
    num_workers=2, batch_sampler=dict(type="mmdet.AspectRatioBatchSampler")
)


@pytest.fixture(autouse=True)
def safe_loading(monkeypatch):
    # Restored afterwards.
    monkeypatch.setattr(CheckpointLoader, "_schemes", CheckpointLoader._schemes.copy())
    use_safe_loading()


@pytest.fixture(autouse=True)
def workers_end(monkeypatch):
    """Ends workers as a process that ends does it; the garbage collector is slow."""
    iterators = []
    start = _MultiProcessingDataLoaderIter.__init__

    def note(self, loader) -> None:
        start(self, loader)
        iterators.append(self)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__init__", note)
    yield
    for iterator in iterators:
        iterator._shutdown_workers()


def run(work_dir, loop: str, data: dict, sampler: str, watch=None, resume=False):
    by_epoch = loop == "epochs"
    data = dict(dataset=Drawn(), batch_size=3, **data)
    watch = watch or Watch()
    runner = Runner(
        model=Noisy(),
        work_dir=str(work_dir),
        train_dataloader=data | dict(sampler=dict(type=sampler, shuffle=True)),
        val_dataloader=dict(
            dataset=Drawn(), batch_size=4, sampler=dict(type="DefaultSampler")
        ),
        val_evaluator=[WeightSum()],
        val_cfg=dict(),
        train_cfg=LOOPS[loop],
        optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.01)),
        param_scheduler=[
            dict(type="CosineAnnealingLR", by_epoch=by_epoch, T_max=16),
            dict(type="LinearLR", by_epoch=False, end=9),
        ],
        default_hooks=dict(
            checkpoint=dict(
                type="SafeCheckpointHook",
                by_epoch=by_epoch,
                interval=2 if by_epoch else 6,
                max_keep_ckpts=1,
                save_best="score",
                rule="greater",
            ),
            logger=dict(type="LoggerHook", interval=1),
        ),
        custom_hooks=[
            watch,
            dict(type="EMAHook"),
            dict(type="MissedEvaluationHook"),
        ],
        log_processor=dict(by_epoch=by_epoch),
        randomness=dict(seed=5),
        default_scope="mmengine",
        experiment_name=f"{work_dir}{watch.at}",
        log_level="ERROR",
        load_from=str(work_dir / "interrupted.pth") if resume else None,
        resume=resume,
    )
    with noticing_sigterm():
        runner.train()
    return watch


def final(work_dir) -> dict:
    (path,) = work_dir.glob("[ei]*.pth")  # and no interrupted.pth any more
    return read_state(path)


@pytest.mark.parametrize(
    ("loop", "data", "sampler"),
    [
        ("epochs", PLAIN, "DefaultSampler"),
        ("epochs", WORKERS, "DefaultSampler"),
        ("epochs", PERSISTENT, "DefaultSampler"),
        ("epochs", BY_ASPECT, "DefaultSampler"),
        ("iterations", PLAIN, "InfiniteSampler"),
        ("iterations", WORKERS, "InfiniteSampler"),
        ("iterations", PERSISTENT, "InfiniteSampler"),
        ("iterations", BY_ASPECT, "InfiniteSampler"),
        ("iterations", PLAIN, "DefaultSampler"),
        ("iterations", WORKERS, "DefaultSampler"),
    ],
)
def test_stopped_anywhere(tmp_path, loop, data, sampler):
    whole = run(tmp_path / "whole", loop, data, sampler)
    assert sorted(whole.seen) == list(range(16))
    assert len({repr(seen) for seen in whole.seen.values()}) == 16
    # Soon after the start, when workers have loaded further than the run got; in the
    # middle of an epoch, at its end, in an evaluation, and once more in the next.
    places = [("train", 1), ("train", 5), ("train", 7), ("val", 8), ("train", 9)]
    seen, scores = {}, {}
    for index, place in enumerate([*places, ("val", 16), None]):
        watch = Watch(place)
        if place is None:
            run(tmp_path / "parts", loop, data, sampler, watch, resume=True)
        else:
            with pytest.raises(Terminated, match=r"saved as '.*/interrupted\.pth'"):
                run(tmp_path / "parts", loop, data, sampler, watch, resume=index > 0)
        assert not seen.keys() & watch.seen.keys()  # no iteration is done twice
        seen, scores = seen | watch.seen, scores | watch.scores
    assert seen == whole.seen
    assert scores == whole.scores and sorted(scores) == [8, 16]
    assert_equal(final(tmp_path / "parts"), final(tmp_path / "whole"))
