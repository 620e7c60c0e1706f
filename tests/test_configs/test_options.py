"""Options that one base file switches on: beside any config, and in a run."""

from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from helpers.paper_configs import PATHS
from helpers.tool_runs import ROOT

OPTIONS = ROOT / "configs/_base_/options"
FILES = sorted(path.name for path in OPTIONS.glob("*.py"))


@cache
def read(path: Path) -> Config:
    """Read a config once for all options, which must not change it."""
    return Config.fromfile(path)


@pytest.mark.integration
@pytest.mark.parametrize("option", FILES)
@pytest.mark.parametrize("path", PATHS[::7], ids=lambda path: path.stem)
def test_options_stand_beside_configs(tmp_path, path, option):
    leaf = tmp_path / "leaf.py"
    leaf.write_text(f"_base_ = ['{path}', '{OPTIONS / option}']\n")
    plain, changed = read(path), Config.fromfile(leaf)
    assert [hook.type for hook in changed.pop("custom_hooks")] == ["EMAHook"]
    assert changed.to_dict() == plain.to_dict()


class Toy(BaseModel):
    """One weight with a gradient of 10."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, inputs, mode="tensor"):
        return {"loss": 10 * self.weight} if mode == "loss" else [self.weight]


class Weight(BaseMetric):
    """What the evaluated weight was."""

    seen: list[float] = []  # noqa: RUF012 (one run at a time)

    def process(self, data_batch, data_samples) -> None:
        self.results.append(data_samples[0].item())

    def compute_metrics(self, results) -> dict:
        self.seen.append(results[0])
        return {"weight": results[0]}


def run(work_dir: Path, option: str | None, **wrapper) -> Runner:
    hooks = Config.fromfile(OPTIONS / option).custom_hooks if option else []
    data = dict(
        dataset=[{"inputs": 0}] * 2,
        sampler=dict(type="InfiniteSampler"),
        batch_size=1,
        num_workers=0,
    )
    runner = Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=data,
        val_dataloader=data | dict(sampler=dict(type="DefaultSampler")),
        val_evaluator=[Weight()],
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=3, val_interval=3),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01), **wrapper),
        custom_hooks=hooks,
        default_scope="mmengine",
        experiment_name=str(work_dir),
        log_level="ERROR",
    )
    Weight.seen.clear()
    runner.train()
    return runner


def test_without_options(tmp_path):
    model = run(tmp_path, None).model
    assert model.weight.item() == pytest.approx(-0.3)
    assert Weight.seen == [pytest.approx(-0.3)]


def test_average_of_weights(tmp_path):
    """It is what is evaluated and saved: the first weight, then 2e-4 of each."""
    model = run(tmp_path, "ema.py").model
    assert model.weight.item() == pytest.approx(-0.3)
    average = -0.1
    for weight in (-0.2, -0.3):
        average += 2e-4 * (weight - average)
    assert Weight.seen == [pytest.approx(average)]
    saved = torch.load(next(tmp_path.glob("*.pth")), weights_only=False)
    assert saved["state_dict"]["weight"].item() == pytest.approx(average)
