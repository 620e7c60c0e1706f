from pathlib import Path

import pytest

from ravlt.datasets.shapes import write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A tiny set: 16 training and 4 validation images."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 16, 4, (64, 64), 3)
