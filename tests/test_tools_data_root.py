"""Commands that continue a run find its data without --data-root."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from helpers.tool_runs import SEG, Run, as_line, small, train
from ravlt.data.root import recorded_data_root

pytestmark = pytest.mark.integration


@pytest.fixture
def run_dir(seg_run, tmp_path) -> Path:
    """A copy of a finished run in its default work directory."""
    shutil.copytree(seg_run.work, tmp_path / "work_dirs" / SEG.stem)
    return tmp_path


def evaluate(cwd: Path, *args) -> Run:
    checkpoint = f"work_dirs/{SEG.stem}/iter_4.pth"
    return Run("test.py", [SEG, checkpoint, *args, *as_line(small(SEG))], cwd)


def test_evaluation_and_tools(run_dir, shapes):
    runs = [
        evaluate(run_dir),
        Run("misc/check_dataset.py", [SEG], run_dir),
        Run("analysis_tools/browse_dataset.py", [SEG, "shown"], run_dir),
    ]
    for run in runs:
        run.succeeded()
        assert run.out.count(f"--data-root {shapes}, as recorded in '") == 1
    assert len(list((run_dir / "shown").iterdir())) == 16


def test_an_evaluation_leaves_what_the_training_recorded(run_dir, shapes):
    other = shutil.copytree(shapes, run_dir / "other")
    evaluate(run_dir, "--data-root", other).succeeded()
    written = Config.fromfile(run_dir / "work_dirs" / SEG.stem / SEG.name)
    assert written.test_dataloader.dataset.data_root == str(other)
    folder = str(run_dir / "work_dirs" / SEG.stem)
    assert recorded_data_root(Config.fromfile(SEG), folder) == str(shapes)


def test_a_training_that_continues(seg_run, tmp_path, shapes):
    shutil.copytree(seg_run.work, tmp_path / "work")
    options = {"train_cfg.max_iters": 5}
    run = train(tmp_path, "--resume", options=options).succeeded()
    assert f"--data-root {shapes}, as recorded in 'work'" in run.out
    assert "Iter(train) [5/5]" in run.out
