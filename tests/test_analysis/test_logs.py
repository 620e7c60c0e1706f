"""Curves of runs, and the command that draws them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from helpers.tool_runs import Run
from ravlt.analysis.logs import draw_logs, read_logs
from ravlt.errors import RAVLTError


def write_run(work_dir: Path, started: str, entries: list[dict]) -> None:
    path = work_dir / started / "vis_data/scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture
def work_dir(tmp_path) -> Path:
    """Killed after step 30, resumed from 20."""
    work_dir = tmp_path / "run"
    first = [dict(loss=float(n), iter=n, step=n) for n in (10, 20, 30)]
    write_run(work_dir, "20260101_000000", first)
    second = [dict(loss=n / 100, iter=n, step=n) for n in (30, 40)]
    second.append(dict(mIoU=51.5, step=40, note="text"))
    write_run(work_dir, "20260102_000000", second)
    return work_dir


def test_the_later_run_counts(work_dir):
    assert read_logs(str(work_dir)) == {
        "loss": [(10, 10.0), (20, 20.0), (30, 0.3), (40, 0.4)],
        "iter": [(10, 10), (20, 20), (30, 30), (40, 40)],
        "mIoU": [(40, 51.5)],
    }


def test_folders_without_logs(tmp_path):
    with pytest.raises(RAVLTError, match=r"has no \*/vis_data/scalars.json"):
        read_logs(str(tmp_path))


def test_unknown_keys_are_told_from_known_ones(work_dir, tmp_path):
    runs = {"a": read_logs(str(work_dir))}
    with pytest.raises(RAVLTError, match="logged 'AP'; known are iter, loss, mIoU"):
        draw_logs(str(tmp_path / "x.png"), runs, ["loss", "AP"])


@pytest.mark.integration
def test_command(work_dir, tmp_path):
    tool = "analysis_tools/analyze_logs.py"
    line = [work_dir, "--keys", "loss", "mIoU", "--out", "curves.png"]
    run = Run(tool, line, tmp_path).succeeded()
    assert "loss last 0.4, lowest 0.3, highest 20, 4 values" in run.out
    assert "mIoU last 51.5" in run.out
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000
    assert "'curves.png' exists" in Run(tool, line, tmp_path).error()
