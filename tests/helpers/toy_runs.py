"""Short runs of a toy model whose batch norm a non-finite batch would corrupt."""

import math
from pathlib import Path

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

BAD = math.nan


class Toy(BaseModel):
    """Batch norm, which keeps statistics, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.linear = nn.Linear(1, 1)
        nn.init.constant_(self.linear.weight, 0.5)

    def forward(self, inputs, mode="tensor"):
        x = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x in inputs])
        if mode == "loss":
            y = self.linear(self.norm(x[:, None]))
            return {"loss": (y - x[:, None]).square().mean()}
        return [self.linear.weight]


def batches(*firsts: float) -> list[dict]:
    """Return samples for batches of two, by the first of each."""
    return [{"inputs": x} for first in firsts for x in (first, 0.5 * first - 1)]


def run(work_dir, data: list[dict], wrapper: dict, hooks=(), load_from=None) -> Runner:
    """Train for one epoch."""
    torch.manual_seed(0)
    runner = Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=data,
            sampler=dict(type="DefaultSampler", shuffle=False),
            batch_size=2,
            num_workers=0,
        ),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1), **wrapper),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
        custom_hooks=[*hooks, dict(type="StopOnNonFiniteHook")],
        default_scope="mmengine",
        load_from=load_from and str(load_from),
        experiment_name=str(work_dir),
        log_level="ERROR",
    )
    runner.train()
    return runner


def saved(runner: Runner) -> dict:
    """Return the only checkpoint of a run."""
    (path,) = Path(runner.work_dir).glob("*.pth")
    return torch.load(path, weights_only=False)
