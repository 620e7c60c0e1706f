"""A process of a run dies, fails or hangs: the others end, and the run can go on."""

import json
import re
import time
from pathlib import Path

import pytest

from helpers.distributed_runs import (
    finish,
    free_port,
    launch,
    seconds_since_fault,
    succeed,
    write_config,
)
from helpers.run_states import assert_equal
from helpers.tool_runs import SEG, is_finite
from ravlt.weights.checkpoint import read_checkpoint

pytestmark = pytest.mark.integration


def fail(cwd: Path, data: Path, options: dict | None = None, **env):
    """Runs two processes of which one has a fault; gives log and seconds from it on."""
    config = write_config(cwd, SEG)
    run = launch(cwd, config, 2, "--data-root", data, options=options, **env)
    assert finish(run) == [1]
    log = (cwd / "log").read_text()
    seconds = seconds_since_fault(log)
    print(json.dumps(dict(fault=env["FAULT"], seconds=seconds)))
    return log, seconds


def test_killed_process_comes_back(tmp_path, shapes):
    """torchrun begins again, and --resume with the last checkpoint."""
    config = write_config(tmp_path, SEG)
    run = launch(
        tmp_path,
        config,
        2,
        "--data-root",
        shapes,
        "--resume",
        MAX_RESTARTS="1",
        FAULT="SIGKILL",
        FAULT_AT="3",
    )
    succeed(run, log=tmp_path / "log")
    log = (tmp_path / "log").read_text()
    assert "resumed after iteration 2\n" in log and "Iter(train) [4/4]" in log
    assert read_checkpoint(tmp_path / "work/iter_4.pth")["meta"]["iter"] == 4
    assert is_finite(tmp_path / "work/iter_4.pth")


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(3))
def test_killed_process_ends_the_others(tmp_path, shapes, trial):
    log, seconds = fail(tmp_path, shapes, FAULT="SIGKILL", FAULT_AT="3")
    assert seconds < 45
    assert re.search(r"rank +: 1 .*\n +exitcode +: -9 ", log)
    assert "Signal 9 (SIGKILL) received by PID" in log


@pytest.mark.slow
def test_error_in_one_process_ends_the_others(tmp_path, shapes):
    log, seconds = fail(tmp_path, shapes, FAULT="error", FAULT_AT="3")
    assert seconds < 45
    assert "ValueError: process 1 has an error" in log


@pytest.mark.slow
def test_process_that_hangs_ends_the_run(tmp_path, shapes):
    """After env_cfg.dist_cfg.timeout, and torchrun's half a minute for a goodbye."""
    options = {"env_cfg.dist_cfg.timeout": 5}
    log, seconds = fail(
        tmp_path, shapes, options=options, FAULT="SIGSTOP", FAULT_AT="3"
    )
    assert 5 < seconds < 60
    assert "Timed out waiting 5000ms" in log


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["one process", "torchrun"])
def test_sigterm_stops_all_after_the_same_iteration(tmp_path, shapes, whom):
    """Whoever of them gets it; and what follows is the uninterrupted run.

    They agree after every tenth iteration.
    """
    options = {"train_cfg.max_iters": 30, "train_cfg.val_interval": 30}
    options["default_hooks.checkpoint.interval"] = 30
    start = [write_config(tmp_path, SEG), 2, "--data-root", shapes, "--resume"]
    log = tmp_path / "log"
    if whom == "torchrun":
        run = launch(tmp_path, *start, options=options)
        while "Iter(train) [ 5/30]" not in log.read_text():
            assert run.poll() is None
            time.sleep(0.05)
        run.terminate()
    else:
        fault = dict(FAULT="SIGTERM", FAULT_AT="5")
        run = launch(tmp_path, *start, options=options, **fault)
    assert finish(run) != [0]
    (stopped,) = set(re.findall(r"SIGTERM after iteration (\d+)", log.read_text()))
    assert int(stopped) in ([10] if whom == "one process" else [10, 20])
    assert (tmp_path / "work/interrupted.pth").exists()
    succeed(launch(tmp_path, *start, options=options), log=log)
    assert f"resumed after iteration {stopped}\n" in log.read_text()
    whole = tmp_path / "whole"
    whole.mkdir()
    succeed(launch(whole, *start, options=options), log=whole / "log")
    paths = [cwd / "work/iter_30.pth" for cwd in (tmp_path, whole)]
    assert_equal(*(read_checkpoint(path)["state_dict"] for path in paths))


def two_machines(cwd: Path, data: Path, **env) -> list:
    """Starts two launchers in a shared folder, which meet at an address of one."""
    port = str(free_port())
    config = write_config(cwd, SEG)
    runs = []
    for rank in "01":
        where = dict(NNODES="2", NODE_RANK=rank, MASTER_ADDR="127.0.0.2", PORT=port)
        line = ["--data-root", data, "--resume"]
        runs.append(launch(cwd, config, 1, *line, **where, **env))
    return runs


@pytest.mark.slow
def test_two_machines(tmp_path, shapes):
    succeed(*two_machines(tmp_path, shapes), log=tmp_path / "log")
    assert is_finite(tmp_path / "work/iter_4.pth")
    # Each evaluated half of the four images, and one of them wrote.
    assert "Iter(val) [2/2]" in (tmp_path / "log").read_text()
    assert len(list(tmp_path.glob("work/*/vis_data/scalars.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("restarts", ["0", "1"])
def test_process_of_one_machine_is_killed(tmp_path, shapes, restarts):
    env = dict(FAULT="SIGKILL", FAULT_AT="3", MAX_RESTARTS=restarts)
    runs = two_machines(tmp_path, shapes, **env)
    statuses = finish(*runs)
    log = (tmp_path / "log").read_text()
    seconds = seconds_since_fault(log)
    print(json.dumps(dict(machines=2, restarts=restarts, seconds=seconds)))
    assert statuses == ([0, 0] if restarts == "1" else [1, 1])
    assert seconds < 120
    if restarts == "1":
        assert "resumed after iteration 2\n" in log
        assert is_finite(tmp_path / "work/iter_4.pth")
