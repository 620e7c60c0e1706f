"""Journals of the GPU benchmark: recording, skipping and continuing."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from helpers.kernels import INTERPRETED
from helpers.tool_runs import ENV, ROOT, Run
from ravlt.analysis.speed.gpu import journal
from ravlt.analysis.speed.gpu.journal import Case, Journal, run_cases
from ravlt.errors import RAVLTError

MACHINE = {"device": "a GPU", "torch": "2", "triton": "3"}


def run(cases, path, seconds: float = 600) -> list[dict]:
    """Run cases and return the rows of the journal."""
    end = time.monotonic() + seconds
    run_cases(cases, Journal(path, MACHINE), torch.device("cpu"), end)
    return Journal(path, MACHINE).rows


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


def test_no_case_starts_after_the_time_limit(tmp_path, capsys):
    assert run([Case({"name": "a"}, dict)], tmp_path / "part.json", seconds=-1) == []
    assert "Time limit reached" in capsys.readouterr().err


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


def test_results_of_another_machine_are_refused(tmp_path):
    path = tmp_path / "part.json"
    run([Case({"name": "a"}, dict)], path)
    Journal(path, MACHINE | {"date": "tomorrow"})
    with pytest.raises(RAVLTError, match="has results for torch 2, and here it is 3"):
        Journal(path, MACHINE | {"torch": "3"})


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
    line += ["-p", "ravlt.analysis.speed.gpu.recorder", "--journal", "tests.json"]
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
    # The journal after a second crash.
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


def benchmark(cwd, part, *args) -> Run:
    return Run("analysis_tools/gpu_benchmark.py", [part, "--out", "out", *args], cwd)


@pytest.mark.integration
def test_the_tool(tmp_path):
    """The tool measures in a new process, continues, and prints the table last."""
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

    mixed = benchmark(tmp_path, *quick[:-1])
    assert mixed.wait() == 1
    assert "results for sizes quick, and here it is full" in mixed.err
    assert "neither cuda nor cpu" in benchmark(tmp_path, "ops", "--device", "g").error()
    assert "is a file" in benchmark(tmp_path, "table", "--out", path).error()
    assert "no results" in benchmark(tmp_path, "table", "--out", "typo").error()
    if INTERPRETED:
        assert benchmark(tmp_path, "all").error() == (
            "error: torch finds no CUDA device; use a machine with a GPU."
        )
