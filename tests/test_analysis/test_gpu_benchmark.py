"""The GPU benchmark: what it measures, counts, keeps and concludes."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from helpers.kernels import DEVICE, INTERPRETED
from helpers.tool_runs import ENV, ROOT, Run
from ravlt.analysis.gpu import floors, journal, timing
from ravlt.analysis.gpu.journal import Case, Journal, run_cases
from ravlt.analysis.gpu.models import (
    CONVNEXT,
    LINEAR,
    QUICK_INFERENCE,
    QUICK_TRAINING,
    SWIN,
    backbone_cases,
    training_cases,
)
from ravlt.analysis.gpu.ops import FLASH, QUICK, op_cases
from ravlt.analysis.gpu.table import render
from ravlt.analysis.gpu.targets import targets
from ravlt.errors import RAVLTError
from ravlt.ops.rala import kernels as rala_kernels

MACHINE = {"device": "a GPU", "torch": "2", "triton": "3"}
TOKENS = {"q_ptr", "k_ptr", "v_ptr", "y_ptr", "grad_ptr"}
GRADIENTS = {"q_grad_ptr", "k_grad_ptr", "v_grad_ptr"}
device = torch.device(DEVICE)


@pytest.fixture
def once(monkeypatch) -> None:
    """Time every call once."""
    monkeypatch.setattr(timing, "_REPEAT", 1)


def run(cases, path, seconds: float = 600) -> list[dict]:
    """Measure cases and return the rows of the journal."""
    kept = Journal(path, MACHINE)
    run_cases(cases, kept, device, time.monotonic() + seconds)
    return Journal(path, MACHINE).rows


@pytest.mark.parametrize(
    ("name", "elements"), (floors.RALA_FORWARD | floors.RALA_BACKWARD).items()
)
def test_floors_count_what_each_kernel_gets(name, elements):
    names = getattr(rala_kernels, name).arg_names
    assert len((TOKENS | GRADIENTS) & set(names)) == elements


def test_floors_by_hand():
    """Forward: q for the mean, k, v, q again, y."""
    assert floors.attention_elements("rala", backward=False) == 5
    assert floors.attention_elements("linear", backward=False) == 4
    assert floors.attention_elements("softmax", backward=False) == 4
    # q, grad, y; k, v and both gradients; q, grad and the gradient.
    assert floors.attention_elements("rala", backward=True) == 5 + 3 + 4 + 3
    assert floors.attention_elements("softmax", backward=True) == 4 + 8


@pytest.mark.integration
def test_operators(kernels, once, tmp_path):
    """Kernels are measured, in Triton's interpreter without a GPU."""
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
    moved = {
        (row["operator"], row["pass"]): row["bytes"] // (2 * 6 * 64 * 2)
        for row in eager
        if not row["operator"].startswith("depthwise")
    }
    assert moved == {
        ("rala", "forward"): 5,
        ("rala", "forward + backward"): 15,
        ("linear", "forward"): 4,
        ("linear", "forward + backward"): 14,
        ("rotation", "forward"): 4,
    }
    maps = [row["bytes"] for row in eager if row["operator"] == "depthwise 3 x 3"]
    assert maps == [2 * 3 * 4 * 8 * 2] * 3  # x and y, bfloat16
    assert "rala | forward | 2 | 1 | 2x3" in render(tmp_path)


def test_kernels_that_would_not_run_are_failures(once, tmp_path, monkeypatch):
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
    assert "| quickstart/mask-rcnn_ravlt-mini_fpn_shapes.py | autocast | 1 |" in table


def test_a_second_run_measures_the_rest(tmp_path):
    path, calls = tmp_path / "part.json", []

    def case(name: str, fails: bool = False) -> Case:
        def measure() -> dict:
            calls.append(name)
            if fails:
                raise ValueError("too\nlarge")
            # The file is complete while a later case runs.
            done = [e["labels"] for e in json.loads(path.read_text())["measured"]]
            return {"before": len(done)}

        return Case({"name": name}, measure)

    assert run([case("a"), case("b", fails=True)], path) == [
        {"name": "a", "before": 0},
        {"name": "b", "failed": "ValueError: too large"},
    ]
    rows = run([case("a"), case("b"), case("c")], path)
    assert rows[2:] == [{"name": "c", "before": 2}]
    assert calls == ["a", "b", "c"]
    Journal(path, MACHINE).forget_failures()
    assert run([case("a"), case("b"), case("c")], path)[2:] == [
        {"name": "b", "before": 2}
    ]


def test_no_case_starts_when_the_time_is_over(tmp_path, capsys):
    assert run([Case({"name": "a"}, dict)], tmp_path / "part.json", seconds=-1) == []
    assert "The time is over" in capsys.readouterr().err


def test_a_case_that_ends_the_process_twice_is_a_failure(tmp_path):
    path = tmp_path / "part.json"
    for _ in range(2):
        assert Journal(path, MACHINE).begin({"name": "a"})
    cases = [Case({"name": "a"}, dict), Case({"name": "b"}, dict)]
    assert run(cases, path) == [
        {"name": "a", "failed": "it ended the process twice"},
        {"name": "b"},
    ]


def test_an_unusable_gpu_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "is_usable", lambda device: False)
    path = tmp_path / "part.json"
    cases = [Case({"name": "a"}, lambda: 1 / 0), Case({"name": "b"}, dict)]
    with pytest.raises(RAVLTError, match="unusable .*ZeroDivisionError"):
        run(cases, path)
    assert [row["name"] for row in Journal(path, MACHINE).rows] == ["a"]


def test_results_of_another_machine(tmp_path):
    path = tmp_path / "part.json"
    run([Case({"name": "a"}, dict)], path)
    Journal(path, MACHINE | {"date": "tomorrow"})
    with pytest.raises(RAVLTError, match="has results for torch 2, and here it is 3"):
        Journal(path, MACHINE | {"torch": "3"})


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
            op_row("kernels", 2e-5, small),  # too small for the share of the copy
            op_row(FLASH, 1e-5, small),
            op_row("kernels", 1.0, small // 2),
            op_row(FLASH, 0.5, small // 2),  # too small to be faster
            op_row("kernels", 1.0, 7, form="eager") | {"failed": "x"},
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
    assert rows["RALA, forward: at least 70% of copy bandwidth from 16 M elements on"]
    shares = [value for key, value in rows.items() if "forward: at least 70%" in key]
    assert shares == [(f"80% (8 x 1 heads, {large} tokens, d 64)", "1 of 1")]
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


def test_the_table_shows_losses_and_failures(tmp_path):
    slow = op_row("kernels", 4e-3, 100)
    failed = op_row(FLASH, 0.0, 100)
    del failed["seconds"], failed["bytes"]
    kept = Journal(tmp_path / "ops.json", MACHINE)
    kept.record({"operator": "copy"}, {"bytes": 1e9, "seconds": 1e-3})
    kept.record(slow, {})
    kept.record(failed, {"failed": "OutOfMemoryError: no"})
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


TESTS = """
import os
import pytest

def test_right():
    pass

def test_wrong():
    assert 1 == 2, "numbers\\ndiffer"

def test_missing():
    pytest.skip("needs two")

def test_crash():
    os._exit(1)

def test_last():
    pass
"""


@pytest.mark.integration
def test_the_recorder_continues_after_a_crash(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    line = [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors"]
    line += ["-p", "ravlt.analysis.gpu.recorder", "--journal", "tests.json"]
    line += ["-c", os.devnull, "--rootdir", str(tmp_path)]
    env = ENV | {"PYTHONPATH": str(ROOT)}
    path = tmp_path / "tests.json"

    def run_pytest() -> subprocess.CompletedProcess:
        return subprocess.run(
            line, cwd=tmp_path, env=env, capture_output=True, text=True
        )

    assert run_pytest().returncode == 1
    content = json.loads(path.read_text())
    assert [started["test"] for started in content["started"]] == [
        "test_it.py::test_crash"
    ]
    # As a second crash leaves it.
    Journal(path, content["machine"]).begin(content["started"][0])
    done = run_pytest()
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    measured = json.loads(path.read_text())["measured"]
    results = {entry["labels"]["test"]: entry["results"] for entry in measured}
    outcomes = {
        name: result.get("outcome") or result["failed"]
        for name, result in results.items()
    }
    assert "No module named 'no_such_module'" in outcomes.pop("test_broken.py")
    assert outcomes == {
        "test_it.py::test_right": "passed",
        "test_it.py::test_wrong": "AssertionError: numbers differ assert 1 == 2",
        "test_it.py::test_missing": "skipped",
        "test_it.py::test_crash": "it ended the process twice",
        "test_it.py::test_last": "passed",
    }


def benchmark(cwd, *args) -> Run:
    return Run("analysis_tools/gpu_benchmark.py", [*args, "--out", "out"], cwd)


@pytest.mark.integration
def test_the_tool(tmp_path):
    """It measures in a process of its own, continues, and prints the table last."""
    quick = ["ops", "--device", "cpu", "--quick"]
    done = benchmark(tmp_path, *quick).succeeded()
    path = tmp_path / "out/ops.json"
    rows = json.loads(path.read_text())["measured"]
    assert rows[0]["labels"] == {"operator": "copy"}
    assert "# Results on a GPU" in done.out
    assert (tmp_path / "out/table.md").read_text() in done.out

    path.write_text(json.dumps(json.loads(path.read_text()) | {"measured": rows[1:]}))
    again = benchmark(tmp_path, *quick).succeeded()
    measured = [line for line in again.err.splitlines() if line.startswith("copy")]
    assert len(measured) == 1
    assert json.loads(path.read_text())["measured"][:-1] == rows[1:]

    if INTERPRETED:
        assert benchmark(tmp_path, "all").error() == (
            "error: torch finds no CUDA device; use a machine with a GPU."
        )


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
def test_a_graph_computes_again():
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
