"""Kernels without a GPU."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from helpers.kernels import INTERPRETED
from ravlt.ops import gpu


@pytest.fixture
def kernels(monkeypatch) -> Iterator[None]:
    """Let operators take their Triton kernels, also on a CPU."""
    if INTERPRETED:
        properties = SimpleNamespace(multi_processor_count=4)
        monkeypatch.setattr(gpu, "_DEVICE_TYPE", "cpu")
        monkeypatch.setattr(gpu, "_prepare_triton", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    gpu._warn_unless_supported.cache_clear()
    yield
    gpu._warn_unless_supported.cache_clear()
