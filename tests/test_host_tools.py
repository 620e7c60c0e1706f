"""The hosts' own command lines train and test RAVLT with the installed operators."""

import importlib
import math
import re
from pathlib import Path

import pytest

from helpers.tool_runs import DET, SEG, Run, as_line, read_scalars, small

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("host", "config", "metric"),
    [("mmdet", DET, "coco/segm_mAP"), ("mmseg", SEG, "mIoU")],
)
def test_train_and_test(tmp_path, shapes, host, config, metric):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shapes").symlink_to(shapes)
    tools = Path(importlib.import_module(host).__file__).parent / ".mim" / "tools"
    options = as_line(small(config))
    line = [config, "--work-dir", "work", *options]
    Run(tools / "train.py", line, tmp_path).succeeded()
    losses = [
        line["loss"] for line in read_scalars(tmp_path / "work") if "loss" in line
    ]
    assert len(losses) == 4 and all(math.isfinite(loss) for loss in losses)
    line = [config, "work/iter_4.pth", "--work-dir", "test", *options]
    run = Run(tools / "test.py", line, tmp_path).succeeded()
    assert re.search(rf"{metric}: \d", run.out)
