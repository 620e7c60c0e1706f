"""What all tests that need CUDA share."""

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: it takes minutes, also for make test-fast."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("gpu")
            item.add_marker("integration")


@pytest.fixture(autouse=True)
def _convolutions_in_float32(monkeypatch) -> None:
    """Turn TF32 off: it keeps 10 bits of the operands of cuDNN's convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
