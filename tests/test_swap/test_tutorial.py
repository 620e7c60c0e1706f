"""The commands of docs/swap.md, run as they stand, by the installed wheel."""

import re
from pathlib import Path

import pytest

from helpers.pages import run_page

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def place(tmp_path_factory, wheel_site) -> Path:
    """A folder after everything has run there."""
    place = tmp_path_factory.mktemp("tutorial")
    (place / "out.txt").write_text(run_page("swap.md", place, wheel_site))
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
