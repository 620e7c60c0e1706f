"""Every deliberate fault turns a test red: the tests see what they are there for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from attention_faults import ATTENTION
from inference_faults import INFERENCE
from kernel_faults import KERNELS
from mutants import Nursery, read_table
from network_faults import NETWORK
from operator_faults import OPERATORS
from paper_faults import PAPERS
from project_faults import PROJECTS
from swap_faults import SWAP
from weight_faults import WEIGHTS

from helpers.tool_runs import ROOT, copy_tree

# The tables quote the sources, and a rename must not turn the quick tiers red.
pytestmark = pytest.mark.slow

FAULTS = [
    fault
    for table in (
        ATTENTION,
        PAPERS,
        OPERATORS,
        KERNELS,
        NETWORK,
        INFERENCE,
        WEIGHTS,
        SWAP,
    )
    for fault in read_table("ravlt", table)
] + read_table("projects", PROJECTS)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_list_is_up_to_date(fault):
    """The place is there, the faulty file is Python, and so is the test."""
    text = (ROOT / fault.file).read_text()
    assert ast.dump(ast.parse(fault.put_into(text))) != ast.dump(ast.parse(text))
    path, _, function = fault.test_path.partition("::")
    name = function.partition("[")[0]
    assert f"\ndef {name}(" in (ROOT / path).read_text()


def test_no_fault_is_listed_twice():
    assert len({str(fault) for fault in FAULTS}) == len(FAULTS)
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("mutations") / "copy")


@pytest.fixture(scope="module")
def nursery(copy) -> Iterator[Nursery]:
    nursery = Nursery(copy)
    yield nursery
    nursery.close()


def test_without_a_fault_all_of_them_pass(nursery):
    status, output = nursery.run(*sorted({fault.test_path for fault in FAULTS}))
    assert status == pytest.ExitCode.OK, output


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_is_found(copy, nursery, fault):
    path = copy / fault.file
    text = path.read_text()
    path.write_text(fault.put_into(text))
    try:
        status, output = nursery.run(fault.test_path)
    finally:
        path.write_text(text)
    survived = f"survived: {fault}\n- {fault.old}\n+ {fault.new}"
    assert status != pytest.ExitCode.OK, survived
    assert status == pytest.ExitCode.TESTS_FAILED, output
