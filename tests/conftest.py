"""What all tests share."""

from pathlib import Path

import pytest
import torch

from ravlt.datasets.shapes import write_shapes

# Small tensors: more threads only wait for each other, minutes of it on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A tiny set: 16 training and 4 validation images."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 16, 4, (64, 64), 3)
