"""The GPU benchmark: measurements, lower bounds, targets and tables."""

import time

import pytest
import torch

from helpers.kernels import DEVICE, INTERPRETED
from helpers.tool_runs import ROOT
from ravlt.analysis.speed.gpu import floors, timing
from ravlt.analysis.speed.gpu.journal import Journal, run_cases
from ravlt.analysis.speed.gpu.models import (
    CONVNEXT,
    LINEAR,
    QUICK_INFERENCE,
    QUICK_TRAINING,
    SWIN,
    backbone_cases,
    training_cases,
)
from ravlt.analysis.speed.gpu.ops import FLASH, QUICK, op_cases
from ravlt.analysis.speed.gpu.table import render
from ravlt.analysis.speed.gpu.targets import targets
from ravlt.ops.rala import kernels as rala_kernels

MACHINE = {"device": "a GPU", "torch": "2", "triton": "3"}
TOKENS = {"q_ptr", "k_ptr", "v_ptr", "y_ptr", "grad_ptr"}
GRADIENTS = {"q_grad_ptr", "k_grad_ptr", "v_grad_ptr"}
device = torch.device(DEVICE)


@pytest.fixture
def once(monkeypatch) -> None:
    """Time every call once."""
    monkeypatch.setattr(timing, "_REPEAT", 1)


def run(cases, path) -> list[dict]:
    """Measure cases and return the rows of the journal."""
    journal = Journal(path, MACHINE)
    run_cases(cases, journal, device, time.monotonic() + 600)
    return journal.rows


@pytest.mark.parametrize(
    ("name", "tensors"), (floors.RALA_FORWARD | floors.RALA_BACKWARD).items()
)
def test_floors_count_the_tensors_of_each_kernel(name, tensors):
    names = getattr(rala_kernels, name).arg_names
    assert len((TOKENS | GRADIENTS) & set(names)) == tensors


def test_floors_by_hand():
    """Forward: q for the mean, k, v, q again, y."""
    assert floors.attention_tensors("rala", backward=False) == 5
    assert floors.attention_tensors("linear", backward=False) == 4
    assert floors.attention_tensors("softmax", backward=False) == 4
    # q, grad, y; k, v and both gradients; q, grad and the gradient.
    assert floors.attention_tensors("rala", backward=True) == 5 + 3 + 4 + 3
    assert floors.attention_tensors("softmax", backward=True) == 4 + 8


@pytest.mark.integration
def test_operators(kernels, once, tmp_path):
    """Without a GPU, the kernels run in Triton's interpreter."""
    rows = run(op_cases(device, QUICK), tmp_path / "ops.json")
    copy, *rows = rows
    assert copy["bytes"] == 2 * QUICK.copied
    profiles = [row for row in rows if row["form"] == "profile"]
    assert [sum(r["kernel_seconds"].values()) > 0 for r in profiles] == [True]
    assert profiles[0]["kernel_bytes"]["key_value_gradients"] == 4 * 2 * 6 * 64 * 2
    chosen = [row for row in rows if row["implementation"] == "kernels"]
    eager = [row for row in chosen if row["form"] == "eager"]
    graphs = [row for row in chosen if row["form"] == "graph"]
    assert len(eager) == len(graphs) == 2 + 3 + 1 + 2
    assert all(row["seconds"] > 0 for row in eager)
    assert all(("failed" in row) == INTERPRETED for row in graphs)
    tensors = {
        (row["operator"], row["pass"]): row["bytes"] // (2 * 6 * 64 * 2)
        for row in eager
        if not row["operator"].startswith("depthwise")
    }
    assert tensors == {
        ("rala", "forward"): 5,
        ("rala", "forward + backward"): 15,
        ("linear", "forward"): 4,
        ("linear", "forward + backward"): 14,
        ("rotation", "forward"): 4,
    }
    maps = [row["bytes"] for row in eager if row["operator"] == "depthwise 3 x 3"]
    assert maps == [2 * 3 * 4 * 8 * 2] * 3  # x and y, bfloat16
    assert "rala | forward | 2 | 1 | 2x3" in render(tmp_path)


def test_kernels_that_cannot_run_are_failures(once, tmp_path, monkeypatch):
    monkeypatch.setattr("ravlt.ops.gpu._DEVICE_TYPE", "none")
    rows = run(op_cases(device, QUICK), tmp_path / "ops.json")
    chosen = [row for row in rows if row.get("implementation") == "kernels"]
    reason = "RAVLTError: The Triton kernels do not run on this device."
    assert {row["failed"] for row in chosen} == {reason}
    plain = [row for row in rows if row.get("implementation") == "plain"]
    assert any("seconds" in row for row in plain)


@pytest.mark.integration
def test_models(once, tmp_path):
    rows = run(backbone_cases(device, QUICK_INFERENCE), tmp_path / "backbones.json")
    rows += run(
        training_cases(device, QUICK_TRAINING, ROOT / "configs"),
        tmp_path / "training.json",
    )
    eager = [row for row in rows if row["form"] == "eager"]
    assert len(eager) == 2 + 1 + 3 + 2 + 1
    assert all(row["seconds"] > 0 and row["peak_mb"] >= 0 for row in eager)
    table = render(tmp_path)
    assert "| ravlt_test:rala, folded | bfloat16 | 1 | 64x64 |" in table
    assert "| quickstart/fpn_ravlt-mini_shapes.py | autocast | 1 |" in table


def op_row(implementation: str, seconds: float, tokens: int, **labels) -> dict:
    return {
        "operator": "rala",
        "implementation": implementation,
        "form": "graph",
        "pass": "forward",
        "batch": 8,
        "heads": 1,
        "size": f"1x{tokens}",
        "tokens": tokens,
        "dim": 64,
        "seconds": seconds,
        "bytes": 5 * 8 * tokens * 64 * 2,
    } | labels


def model_row(model: str, seconds: float, size: str = "10x10", **labels) -> dict:
    row = {"model": model, "form": "graph", "precision": "autocast", "batch": 1}
    return row | {"size": size, "seconds": seconds} | labels


def test_targets_are_computed():
    large, small = 1 << 16, 1 << 11
    step = {"form": "eager", "batch": 8}
    parts = {
        "ops": [
            {"operator": "copy", "bytes": 1e9, "seconds": 1e-3},  # 1 TB/s
            op_row("kernels", 5 * 8 * large * 64 * 2 / 0.8e12, large),
            op_row(FLASH, 1.0, large),
            op_row("kernels", 2e-5, small),  # below the size of the copy's target
            op_row(FLASH, 1e-5, small),
            op_row("kernels", 1.0, small // 2),
            op_row(FLASH, 0.5, small // 2),  # below the size of flash's target
            {"operator": "copy", "failed": "ValueError: no"},
        ],
        "backbones": [
            model_row(LINEAR, 1.0),
            model_row(SWIN, 1.2),
            model_row(CONVNEXT, 1.5),
            model_row(LINEAR, 4.4, "20x20"),
            model_row(SWIN, 8.8, "20x20"),
        ],
        "training": [
            model_row(LINEAR, 1.0, peak_mb=80.0, **step),
            model_row(SWIN, 2.0, peak_mb=60.0, **step),
        ],
    }
    rows = {row["target"]: (row["reached"], row["met"]) for row in targets(parts)}
    key = "RALA, forward: at least 70% of copy bandwidth from 16 M elements on"
    assert rows[key] == (f"80% (8 x 1 heads, {large} tokens, d 64)", "1 of 1")
    key = "RALA, forward, graph: faster than SDPA (flash) from 2048 tokens on"
    assert rows[key][0].startswith(f"0.50 x (8 x 1 heads, {small} tokens")
    assert rows[key][1] == "1 of 2"
    key = f"{LINEAR}, inference, graph: at least 1.3 x {SWIN}"
    assert rows[key] == (
        "1.20 x (autocast, batch 1, 10x10) to 2.00 x (autocast, batch 1, 20x20)",
        "1 of 2",
    )
    assert rows[f"{LINEAR}, inference, graph: at least 1.0 x {CONVNEXT}"][1] == "1 of 1"
    assert rows[f"{LINEAR}, training step: at least 1.0 x {SWIN}"][1] == "1 of 1"
    key = f"{LINEAR}, training step: no more memory than {SWIN}"
    assert rows[key] == ("1.33 x (autocast, batch 8, 10x10)", "0 of 1")
    key = f"{LINEAR}, batch 1, graph: time grows with pixels^1.05 at most"
    assert rows[key] == ("^1.069 (10x10 to 20x20)", "0 of 1")
    eager = [value for key, value in rows.items() if "inference, eager" in key]
    assert eager == [("not measured", "")] * 2


def test_the_table_shows_slow_kernels_and_failures(tmp_path):
    slow = op_row("kernels", 4e-3, 100)
    failed = op_row(FLASH, 0.0, 100)
    del failed["seconds"], failed["bytes"]
    journal = Journal(tmp_path / "ops.json", MACHINE)
    journal.record({"operator": "copy"}, {"bytes": 1e9, "seconds": 1e-3})
    journal.record(slow, {})
    journal.record(failed, {"failed": "OutOfMemoryError: no"})
    table = render(tmp_path)
    assert "ops: device: a GPU, torch: 2, triton: 3" in table
    assert "Copy: 1.00 TB/s" in table
    cells = (
        "| rala | forward | 8 | 1 | 1x100 | 64 | 4000 | 0.512 | 0.512 | 0% | failed |"
    )
    assert cells in table
    assert (
        "- ops: rala, SDPA (flash), graph, forward, 8, 1, 1x100, 100, 64: Out" in table
    )
    assert "training: not measured" in table


@pytest.mark.gpu
def test_times_by_events():
    rate = timing.copy_rate(device, 1 << 28)
    assert 1e10 < rate["bytes"] / rate["seconds"] < 1e14
    assert rate["seconds_min"] <= rate["seconds"] <= rate["seconds_max"]
    x = torch.randn(4096, 4096, device=device)
    kernels = timing.kernel_times(lambda: x @ x, device)
    queued = timing.summarize(timing.cold_times(lambda: x @ x, device, queued=True))
    assert sum(kernels.values()) == pytest.approx(queued["seconds"], rel=0.3)


@pytest.mark.gpu
def test_a_graph_replays_the_call():
    x = torch.ones(5, device=device)
    total = torch.zeros(5, device=device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        replay = timing.capture(lambda: total.add_(x))
        torch.cuda.synchronize()
        before = total.clone()
        for _ in range(3):
            replay()
        torch.cuda.synchronize()
    assert torch.equal(total, before + 3)
