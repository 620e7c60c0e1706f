"""Training by tools/train.py on a GPU: mixed precision, checkpoints, resuming."""

import shutil
from pathlib import Path

import pytest
import torch

from helpers.backbones import error
from helpers.tool_runs import (
    DET,
    SEG,
    Run,
    Trained,
    is_finite,
    read_metrics,
    read_scalars,
    train,
)
from ravlt.weights.checkpoint import read_checkpoint

KEEP = {"default_hooks.checkpoint.max_keep_ckpts": -1}
PRECISIONS = {
    "float32": [],
    "float16": ["--amp"],
    "bfloat16": ["--amp-dtype", "bfloat16"],
}
# Of losses. Scores that are rounded otherwise select other proposals of a detector.
ROUNDED = {SEG: 2e-2, DET: 0.3}
# Gradients of some operators of the hosts are sums by atomic additions, in any order.
REORDERED = {SEG: 1e-3, DET: 5e-2}
configs = pytest.mark.parametrize("config", [SEG, DET], ids=["seg", "det"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shapes) -> dict[tuple[Path, str], Run]:
    """Start all runs at once: most of their time is that of imports."""
    return {
        (config, name): train(
            tmp_path_factory.mktemp(name),
            *("--data-root", shapes, *args),
            config=config,
            options=KEEP,
            gpu=True,
        )
        for config in (SEG, DET)
        for name, args in PRECISIONS.items()
    }


def losses(work: Path) -> dict[int, float]:
    """Return the loss of each iteration, all of which ran on a GPU."""
    lines = [line for line in read_scalars(work) if "loss" in line]
    assert all(line["memory"] > 0 for line in lines)  # of the GPU, in MB
    return {line["step"]: line["loss"] for line in lines}


@configs
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training(runs, config, precision):
    """The first loss is that in float32, rounded; weights stay in float32."""
    work = runs[config, precision].succeeded().cwd / "work"
    exact = runs[config, "float32"].succeeded().cwd / "work"
    found = losses(work)
    assert list(found) == [1, 2, 3, 4]
    assert found[1] == pytest.approx(losses(exact)[1], rel=ROUNDED[config])
    assert is_finite(work / "iter_4.pth")
    weights = read_checkpoint(work / "iter_4.pth")["state_dict"].values()
    dtypes = {weight.dtype for weight in weights if weight.is_floating_point()}
    assert dtypes == {torch.float32}


def moments(path: Path) -> torch.Tensor:
    """Return all that the optimizer knows of former gradients as one tensor."""
    states = read_checkpoint(path)["optimizer"]["state"].values()
    return torch.cat([state["exp_avg"].flatten() for state in states])


@configs
def test_resumed_run_goes_on_as_the_whole_one(runs, config, shapes, tmp_path):
    whole = runs[config, "float32"].succeeded().cwd / "work"
    line = ["--data-root", shapes, "--resume", whole / "iter_2.pth"]
    train(tmp_path, *line, config=config, options=KEEP, gpu=True).succeeded()
    found, expected = losses(tmp_path / "work"), losses(whole)
    assert list(found) == [3, 4]
    tolerance = REORDERED[config]
    assert found == pytest.approx({i: expected[i] for i in found}, rel=tolerance)
    last = [work / "iter_4.pth" for work in (tmp_path / "work", whole)]
    assert error(*map(moments, last)) < 10 * tolerance


def test_checkpoint_of_a_gpu_serves_a_cpu(runs, shapes, tmp_path):
    run = runs[SEG, "float32"].succeeded()
    shutil.copytree(run.cwd / "work", tmp_path / "work")
    trained = Trained(SEG, tmp_path, run.out, "mIoU", {"loss"})
    trained.test(shapes).succeeded()
    for name in ("mIoU", "aAcc"):
        # Percent; the GPU's convolutions are in TF32.
        assert read_metrics(tmp_path)[name] == pytest.approx(trained.val()[name], abs=1)
