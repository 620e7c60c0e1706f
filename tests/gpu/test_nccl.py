"""Processes joined by NCCL, one for each GPU, compute what one process does."""

import os
from pathlib import Path

import pytest
import torch

from helpers.distributed_runs import EQUAL, STILL, launch, succeed, write_config
from helpers.host_models import build_host
from helpers.tool_runs import SEG, read_scalars, small, train

BATCH = 4
# Statistics are those of all processes. With one process, or none, it is batch norm.
SYNCED = """
norm = dict(type="SyncBN")
model = dict(
    backbone=dict(norm_cfg=norm),
    neck=dict(norm_cfg=norm),
    decode_head=dict(norm_cfg=norm),
)
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> dict:
    """Write weights to begin with: runners draw random ones in orders of their own."""
    path = tmp_path_factory.mktemp("start") / "start.pth"
    torch.save(dict(state_dict=build_host(SEG).state_dict()), path)
    return {"load_from": path}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, shapes, start) -> Path:
    cwd = tmp_path_factory.mktemp("alone")
    options = small(SEG) | STILL | start | {"train_dataloader.batch_size": BATCH}
    config = write_config(cwd, SEG, child=EQUAL + SYNCED)
    line = [cwd, "--data-root", shapes]
    train(*line, config=config, options=options, gpu=True).succeeded()
    return cwd / "work"


def curve(work: Path) -> list[tuple[float, float]]:
    lines = [line for line in read_scalars(work) if "loss" in line]
    return [(line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.parametrize("number", [1, 2])
def test_losses_and_gradients(tmp_path, shapes, start, alone, number):
    """Convolutions are in TF32, by other algorithms for other batches."""
    if number > torch.cuda.device_count():
        pytest.skip(f"needs {number} GPUs")
    config = write_config(tmp_path, SEG, child=EQUAL + SYNCED)
    devices = ",".join(map(str, range(torch.cuda.device_count())))
    run = launch(
        *(tmp_path, config, number, "--data-root", shapes),
        options=start | {"train_dataloader.batch_size": BATCH // number},
        CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", devices),
    )
    log = tmp_path / "log"
    succeed(run, log=log)
    assert f"GPU number: {number}" in log.read_text()
    found, expected = curve(tmp_path / "work"), curve(alone)
    assert len(found) == 4
    for got, wanted in zip(found, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-2)
