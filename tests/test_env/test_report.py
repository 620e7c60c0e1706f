"""The report of this environment."""

import mmcv.ops
import pytest
import torch

from ravlt.env import operators, problems, versions
from ravlt.env import report as report_module


def test_this_environment_is_sound():
    assert operators.import_error() is None
    assert problems.find_problems() == problems.find_warnings() == []
    found = versions.find_versions()
    assert list(found) == ["mmengine", "mmcv", "mmdet", "mmseg"]
    report = report_module.report().splitlines()
    assert [line.split()[0] for line in report[:3]] == ["ravlt", "python", "torch"]
    assert torch.__version__ in report[2]
    assert f"{'mmcv':<12}{found['mmcv'][1]} ({found['mmcv'][0]})" in report
    assert not any(line.startswith(("problem", "warning")) for line in report)


def test_operators_by_name():
    (running,) = (
        line
        for line in report_module.report().splitlines()
        if line.startswith("operators")
    )
    assert "on cpu: nms, soft_nms, nms_match, roi_align" in running
    if versions.is_installed("mmcv-lite"):
        # The package has all of them.
        errors = operators.probe_operators("cpu")
        assert len(errors) == 20 and errors == dict.fromkeys(errors)


def test_an_operator_that_fails_is_reported(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(mmcv.ops, "roi_align", fail)
    report = report_module.report().splitlines()
    assert f"{'':<12}not on cpu: roi_align (no kernel image is available)" in report


@pytest.mark.gpu
def test_operators_on_the_gpu():
    errors = operators.probe_operators("cuda:0")
    assert len(errors) == 20 and errors == dict.fromkeys(errors)


def test_warnings_and_problems_end_the_report(monkeypatch):
    monkeypatch.setattr(report_module, "find_warnings", lambda: ["a is new."])
    monkeypatch.setattr(report_module, "find_problems", lambda: ["b is gone."])
    assert report_module.report().splitlines()[-2:] == [
        "warning     a is new.",
        "problem     b is gone.",
    ]
