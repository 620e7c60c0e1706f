"""Data, trained runs, a wheel and a device that the tests of the library share."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.kernels import INTERPRETED
from helpers.tool_runs import (
    DET,
    ENV,
    ROOT,
    SEG,
    Trained,
    as_line,
    copy_tree,
    small,
    train,
)
from ravlt.data.shapes import write_shapes
from ravlt.ops import gpu


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """Write 16 training and 4 validation images."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 16, 4, (64, 64), 3)


@pytest.fixture(scope="session")
def seg_run(tmp_path_factory, shapes) -> Trained:
    """Train a segmentor as a user would."""
    cwd = tmp_path_factory.mktemp("seg")
    line = [sys.executable, ROOT / "tools/train.py", SEG, "--work-dir", "work"]
    line += ["--data-root", shapes, *as_line(small(SEG))]
    done = subprocess.run(line, cwd=cwd, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return Trained(SEG, cwd, done.stdout, "mIoU", {"loss", "decode.loss_ce"})


@pytest.fixture(scope="session")
def det_run(tmp_path_factory, shapes) -> Trained:
    """Train a detector."""
    cwd = tmp_path_factory.mktemp("det")
    run = train(cwd, "--data-root", shapes, config=DET).succeeded()
    losses = {"loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}
    return Trained(DET, cwd, run.out, "coco/bbox_mAP", losses | {"loss_mask"})


@pytest.fixture(params=["seg_run", "det_run"])
def trained(request) -> Trained:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def seg(seg_run) -> Path:
    return seg_run.work


@pytest.fixture(scope="session")
def wheel_site(tmp_path_factory) -> Path:
    """Build a wheel of this tree and unpack it."""
    source = copy_tree(tmp_path_factory.mktemp("wheel") / "source")
    line = [sys.executable, "-m", "pip", "wheel", "-q", ".", "--no-deps"]
    line += ["--no-build-isolation", "--no-index", "-w", "out"]
    done = subprocess.run(line, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "out").glob("ravlt-*.whl")
    site = source.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.fixture
def kernels(monkeypatch) -> Iterator[None]:
    """Let operators take their Triton kernels, also on a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if INTERPRETED:
        properties = SimpleNamespace(multi_processor_count=4)
        monkeypatch.setattr(gpu, "_DEVICE_TYPE", "cpu")
        monkeypatch.setattr(gpu, "_prepare_triton", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    gpu._warn_unless_supported.cache_clear()
    yield
    gpu._warn_unless_supported.cache_clear()
