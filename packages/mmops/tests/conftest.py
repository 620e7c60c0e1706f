"""The module under test, in place of a compiled one."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import mmcv._ext
import mmcv.ops  # noqa: F401
import pytest
import torch

EXT = Path(__file__).parents[1] / "src" / "mmcv" / "_ext.py"


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Let all of mmcv.ops call this checkout's functions."""
    spec = importlib.util.spec_from_file_location("ravlt_mmops_ext", EXT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, loaded in list(sys.modules.items()):
        if name.startswith("mmcv.ops.") and hasattr(loaded, "ext_module"):
            monkeypatch.setattr(loaded, "ext_module", module)
    return module


@pytest.fixture
def compiled() -> ModuleType:
    """The compiled operators of mmcv."""
    if mmcv._ext.__file__.endswith(".py"):
        pytest.skip("needs a compiled mmcv")
    return mmcv._ext


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Raise where the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")
