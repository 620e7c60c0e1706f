"""Isolation of every test, the library's in tests/ and the projects' own."""

from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import DefaultScope

# Tensors are small. More threads only wait for each other, which costs minutes on a
# busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_scope() -> Iterator[None]:
    """Hide the default scope that the runner of another test has left."""
    given = DefaultScope.get_current_instance()  # set by a fixture of the whole module
    scope = given.scope_name if given else "mmengine"
    with DefaultScope.overwrite_default_scope(scope):
        yield
