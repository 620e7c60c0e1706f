from pathlib import Path

import pytest

from helpers.shapes_dataset import SEED, SIZE, TRAIN, VAL
from ravlt.data.shapes import write_shapes


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return write_shapes(
        tmp_path_factory.mktemp("data") / "shapes", TRAIN, VAL, SIZE, SEED
    )
