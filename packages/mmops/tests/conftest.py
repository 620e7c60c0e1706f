"""The functions under test, in place of a compiled mmcv's where there is one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import mmcv._ext
import mmcv.ops
import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mmcv" / "_ext.py"


@pytest.fixture
def ours(monkeypatch) -> ModuleType:
    """Let all of mmcv.ops call the functions of this checkout, and return them."""
    spec = importlib.util.spec_from_file_location("ravlt_mmops_ext", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, operators in list(sys.modules.items()):
        if name.startswith("mmcv.ops.") and hasattr(operators, "ext_module"):
            monkeypatch.setattr(operators, "ext_module", module)
    return module


@pytest.fixture
def compiled() -> ModuleType:
    """Return mmcv's compiled functions."""
    if mmcv._ext.__file__.endswith(".py"):
        pytest.skip("needs a compiled mmcv to compare with")
    return mmcv._ext
