"""The commands of docs/swap.md, run as they stand, by the installed wheel."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tool_runs import ENV, ROOT

pytestmark = pytest.mark.integration

_BLOCK = re.compile(r"(?:`(\S+\.py)`:\n\n)?```(bash|python)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory, wheel_site) -> Path:
    """A folder after everything has run there."""
    place = tmp_path_factory.mktemp("tutorial")
    # Programs of this test's interpreter, and the package from its wheel.
    path = f"{Path(sys.executable).parent}:{ENV['PATH']}"
    env = ENV | dict(PATH=path, PYTHONPATH=str(wheel_site), PYTHONWARNINGS="ignore")
    script = ["set -e"]
    for name, kind, text in _BLOCK.findall((ROOT / "docs/swap.md").read_text()):
        assert (kind == "python") == bool(name)
        if name:
            (place / name).write_text(text)
        else:
            script.append(text)
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (place / "out.txt").write_text(done.stdout)
    return place


def test_swap_and_training(place):
    out = (place / "out.txt").read_text()
    assert "retinanet_ravlt.py: inherits mmdet::retinanet/" in out
    assert "check: loss " in out
    # Both are evaluated in training, and tested.
    assert len(re.findall(r"Epoch\((?:val\) \[1\]|test\) )\[4/4\]", out)) == 2
    assert len(re.findall(r"\bmIoU: \d", out)) == 2
    assert (place / "work_dirs/my_detector/epoch_1.pth").is_file()
    assert (place / "work_dirs/my_segmentor/iter_5.pth").is_file()


def test_inferencers_and_torchvision(place):
    assert (place / "detected/vis/000001.jpg").stat().st_size > 1000
    assert (place / "segmented/vis/000001.jpg").stat().st_size > 1000
    out = (place / "out.txt").read_text()
    assert out.rstrip().endswith("['boxes', 'labels', 'scores', 'masks']")
