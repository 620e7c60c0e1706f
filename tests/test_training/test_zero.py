"""PyTorch's ZeRO, as docs/distributed.md names it: exact, also when a run stops."""

import os
import signal
from pathlib import Path

import pytest
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

from helpers.distributed_runs import call_in_group
from helpers.run_states import assert_equal, read_state
from ravlt.training.guards.signals import Terminated, noticing_sigterm
from ravlt.weights.checkpoint import read_checkpoint, use_safe_loading

pytestmark = pytest.mark.integration

ITERATIONS = 24
BATCH = 4  # of all processes
ADAMW = dict(lr=0.05, weight_decay=0.1)


class Samples(list):
    """A list that takes attributes, as data sets do."""


DATA = Samples({"inputs": i % 7 / 3 - 1} for i in range(ITERATIONS * BATCH))


class Curve(BaseModel):
    """A parabola, approximated; each of the two processes owns some parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, inputs, mode="tensor"):
        x = torch.as_tensor(inputs, dtype=torch.float32)[:, None]
        loss = (self.layers(x) - x.square()).square().mean()
        return {"loss": loss} if mode == "loss" else [loss]


class Loss(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results.append(float(data_samples[0]))

    def compute_metrics(self, results) -> dict:
        return {"score": sum(results)}


class Sigterm(Hook):
    """Send SIGTERM to the process itself at a place."""

    priority = "VERY_HIGH"

    def __init__(self, where: str, iteration: int, ranks: tuple) -> None:
        self.where, self.iteration, self.ranks = where, iteration, ranks

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        self._signal(runner, "train")

    def before_val_iter(self, runner, *args, **kwargs) -> None:
        self._signal(runner, "val")

    def _signal(self, runner, where: str) -> None:
        here = (where, runner.iter) == (self.where, self.iteration)
        if here and get_rank() in self.ranks:
            os.kill(os.getpid(), signal.SIGTERM)


def train(work: Path, optimizer: dict, hooks: tuple, resume: bool = False) -> str:
    """Train, and return how the run stopped."""
    use_safe_loading()
    size = BATCH // get_world_size()
    sampler = dict(type="DefaultSampler", shuffle=False)
    loading = dict(sampler=sampler, batch_size=size, num_workers=0)
    runner = Runner(
        model=Curve(),
        work_dir=str(work),
        train_dataloader=dict(dataset=DATA, **loading),
        train_cfg=dict(
            type="SafeIterBasedTrainLoop", max_iters=ITERATIONS, val_interval=6
        ),
        val_dataloader=dict(dataset=Samples(DATA[: 2 * BATCH]), **loading),
        val_cfg=dict(),
        val_evaluator=dict(type=Loss),
        optim_wrapper=dict(optimizer=optimizer),
        default_hooks=dict(
            checkpoint=dict(
                type="SafeCheckpointHook", by_epoch=False, interval=ITERATIONS
            )
        ),
        custom_hooks=[Sigterm(*hook) for hook in hooks],
        randomness=dict(seed=0),
        default_scope="mmengine",
        experiment_name=f"{work.name}-{resume}",
        log_level="ERROR",
        launcher="pytorch",
        cfg=dict(
            model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)
        ),
        load_from=str(work / "interrupted.pth") if resume else None,
        resume=resume,
    )
    with noticing_sigterm():
        try:
            runner.train()
        except Terminated as stop:
            return str(stop).partition(",")[0]
    return "finished"


ZERO = dict(type="ZeroRedundancyOptimizer", optimizer_type="AdamW", **ADAMW)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two processes with ZeRO, uninterrupted."""
    work = tmp_path_factory.mktemp("whole")
    assert call_in_group(2, train, work, ZERO, ()) == ["finished"] * 2
    return work


def test_two_processes_compute_what_one_does(whole):
    model = Curve()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for first in range(0, len(DATA), BATCH):
        inputs = [sample["inputs"] for sample in DATA[first : first + BATCH]]
        optimizer.zero_grad()
        model(inputs, mode="loss")["loss"].backward()
        optimizer.step()
    saved = read_checkpoint(whole / f"iter_{ITERATIONS}.pth")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(saved["state_dict"][key], value, rtol=0, atol=1e-5)
        assert (value - start[key]).abs().max() > 0.1
    # The moments of all parameters, whichever process owned them.
    assert len(saved["optimizer"]["state"]) == len(start)


def test_optimizer_state_is_sharded():
    held = call_in_group(2, held_states)
    assert sum(held) == 4 and min(held) >= 1


def held_states() -> int:
    """Return of how many parameters a process holds the optimizer's state."""
    model = Curve()
    wrapper = build_optim_wrapper(model, dict(optimizer=ZERO))
    wrapper.update_params(model([0.5], mode="loss")["loss"])
    return len(wrapper.optimizer.optim.state)


@pytest.mark.parametrize(
    ("hook", "stopped"),
    [
        (("train", 3, (1,)), 10),
        # Writing takes all processes, so they go on to their next agreement.
        (("val", 6, (0, 1)), 10),
        (("val", 6, (1,)), 10),
    ],
    ids=str,
)
def test_sigterm_and_resume(tmp_path, whole, hook, stopped):
    found = call_in_group(2, train, tmp_path, ZERO, (hook,))
    assert found == [f"stopped by SIGTERM after iteration {stopped}"] * 2
    assert call_in_group(2, train, tmp_path, ZERO, (), True) == ["finished"] * 2
    name = f"iter_{ITERATIONS}.pth"
    assert_equal(read_state(tmp_path / name), read_state(whole / name))


def test_without_zero_each_process_stops_alone_in_evaluation(tmp_path):
    adamw = dict(type="AdamW", **ADAMW)
    hook = "val", 6, (0, 1)
    found = call_in_group(2, train, tmp_path, adamw, (hook,))
    assert found == ["stopped by SIGTERM after iteration 6"] * 2
