"""Versions beside the range in which all tests passed."""

import re

import pytest
import torch

from helpers.tool_runs import ROOT
from ravlt.env import text, versions


def test_versions_outside_of_the_tested_range_warn(monkeypatch):
    monkeypatch.setitem(versions.TESTED, "torch", ("1.0", "1.13"))
    (line,) = versions.version_warnings()
    assert line == (
        f"torch {torch.__version__} was not tested with ravlt: 1.0 to 1.13 were, so "
        f"run the tests (make test) before you rely on it."
    )


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.15.0", (2, 15)), ("2.10.0+cu128", (2, 10)), ("3.0.0rc1", (3, 0))],
)
def test_release(version, expected):
    assert text.release(version) == expected


def test_tested_range_ends_at_the_pin():
    pins = (ROOT / "constraints" / "torchvision.txt").read_text()
    newest = re.search(r"^torch==(\S+?);", pins, re.MULTILINE)[1]
    assert text.release(newest) == text.release(versions.TESTED["torch"][1])
    required = (ROOT / "setup.cfg").read_text()
    assert f"python_requires = >={versions.TESTED['python'][0]}\n" in required
