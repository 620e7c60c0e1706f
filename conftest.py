"""Isolation and reports of all tests, the library's in tests/ and the projects' own."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen
# before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mmengine.registry import DefaultScope  # noqa: E402

# Tensors are small. More threads only wait for each other, which costs minutes on a
# busy machine.
torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items: list[pytest.Item]) -> None:
    """Put the long files first, so that all workers of make test end together."""
    if hasattr(config, "workerinput"):
        long = {i.path for i in items if i.get_closest_marker("integration")}
        items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Exempt what the imports made from garbage collection.

    mmengine collects garbage whenever it builds a data set. Visiting the millions of
    objects of the imported libraries takes most of the time of such a test.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


def pytest_terminal_summary(terminalreporter) -> None:
    """Count the GPU tests that did not run, so that green does not hide them."""
    skipped = terminalreporter.stats.get("skipped", [])
    number = sum("gpu" in report.keywords for report in skipped)
    if number:
        terminalreporter.section(
            f"{number} GPU TESTS DID NOT RUN: torch finds no CUDA device",
            red=True,
            bold=True,
        )


@pytest.fixture(autouse=True)
def _own_scope() -> Iterator[None]:
    """Hide the default scope that the runner of another test has left."""
    given = DefaultScope.get_current_instance()  # set by a fixture of the whole module
    scope = given.scope_name if given else "mmengine"
    with DefaultScope.overwrite_default_scope(scope):
        yield
