"""The hosts' own command lines train and test RAVLT with the installed operators."""

import importlib
import math
import re
from pathlib import Path

import pytest
from mmengine.runner.checkpoint import CheckpointLoader

from helpers.tool_runs import DET, SEG, Run, as_line, read_scalars, small
from ravlt.training.checkpoints.host_loading import read_own_checkpoints

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("host", "config", "metric"),
    [("mmdet", DET, "coco/segm_mAP"), ("mmseg", SEG, "mIoU")],
)
def test_train_and_test(tmp_path, shapes, host, config, metric):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shapes").symlink_to(shapes)
    tools = Path(importlib.import_module(host).__file__).parent / ".mim" / "tools"
    options = small(config) | {"train_cfg.max_iters": 2}
    line = [config, "--work-dir", "work"]
    Run(tools / "train.py", [*line, *as_line(options)], tmp_path).succeeded()
    # On PyTorch 2.6 and later, mmengine alone refuses its own checkpoint.
    line += ["--resume", *as_line(small(config))]
    Run(tools / "train.py", line, tmp_path).succeeded()
    logged = read_scalars(tmp_path / "work")
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert len(losses) == 4 and all(math.isfinite(loss) for loss in losses)
    line = [config, "work/iter_4.pth", "--work-dir", "test", *as_line(small(config))]
    run = Run(tools / "test.py", line, tmp_path).succeeded()
    assert re.search(rf"{metric}: \d", run.out)


def test_a_foreign_loader_stays(monkeypatch):
    """Such as one that decrypts."""

    def load(filename: str, map_location) -> dict:
        return {}

    monkeypatch.setitem(CheckpointLoader._schemes, "", load)
    read_own_checkpoints()
    assert CheckpointLoader._schemes[""] is load
