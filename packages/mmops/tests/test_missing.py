"""What mmcv finds in the module beside the operators."""

import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import mmcv
import pytest
import torch


def test_every_name_that_mmcv_asks_for(ours):
    asked = set()
    for path in Path(mmcv.__file__).parent.glob("ops/*.py"):
        lists = re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.S)
        asked.update(re.findall(r"'(\w+)'", " ".join(lists)))
    assert len(asked) > 100
    assert all(callable(getattr(ours, name)) for name in asked)


def test_a_missing_operator_names_its_caller_and_the_fix(ours):
    from mmcv.ops import box_iou_rotated

    boxes = torch.tensor([[1.0, 1.0, 2.0, 2.0, 0.1]])
    with pytest.raises(NotImplementedError) as raised:
        box_iou_rotated(boxes, boxes)
    message = str(raised.value)
    assert message.startswith(
        "mmcv.ops.box_iou_rotated needs mmcv's operator 'box_iou_rotated', which "
        "ravlt-mmops does not have: run pip uninstall mmcv-lite ravlt-mmops, then"
    )
    assert "\n" not in message


def test_python_finds_nothing_that_is_no_operator(ours):
    with pytest.raises(AttributeError):
        ours.__path__  # noqa: B018


def test_versions_for_reports(ours):
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert re.fullmatch(r"ravlt-mmops \S+ on torchvision \S+", get_compiler_version())
    expected = "not available" if not torch.version.cuda else torch.version.cuda
    assert get_compiling_cuda_version() == expected


def test_a_compiled_module_wins(tmp_path):
    """Python's import system looks for an extension module before a source file."""
    package = tmp_path / "mmcv_like"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_ext.py").write_text("raise RuntimeError('the source was imported')")
    suffix = EXTENSION_SUFFIXES[0]
    (package / f"_ext{suffix}").touch()
    code = "import importlib.util as u; print(u.find_spec('mmcv_like._ext').origin)"
    line = [sys.executable, "-c", code]
    done = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith(suffix)
