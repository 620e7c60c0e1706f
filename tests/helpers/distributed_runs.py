"""Runs of several processes, faults in them, and calls in process groups."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from helpers.tool_runs import (
    ENV,
    ROOT,
    SEG,
    TESTS,
    as_line,
    fork_server,
    restore_default_signals,
    small,
)

# One process and several compute the same with this config: no batch statistics, and no
# Adam, whose steps are noise where the gradient is zero.
EQUAL = """
norm = dict(type="GN", num_groups=4)
custom_imports = dict(imports=["ravlt", "helpers.distributed_runs"])
model = dict(
    backbone=dict(norm_eval=True),
    neck=dict(norm_cfg=norm),
    decode_head=dict(norm_cfg=norm),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", weight_decay=0.01),
    clip_grad=dict(max_norm=0.5),
)
custom_hooks = [dict(type="MeanLoss"), dict(type="Fault")]
"""
STILL = {
    "optim_wrapper.optimizer.lr": 10,  # warm-up starts at a hundredth
    "train_dataloader.dataset.pipeline.2.prob": 0.0,
    "train_dataloader.dataset.pipeline.3.prob": 0.0,
}


@HOOKS.register_module()
class MeanLoss(Hook):
    """Log the mean loss of all processes instead of the main one's."""

    priority = "HIGHEST"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        all_reduce(outputs["loss"], "mean")


@HOOKS.register_module()
class Fault(Hook):
    """Inject FAULT into process 1 at iteration FAULT_AT before the first restart."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        at = runner.iter == int(os.environ.get("FAULT_AT", -1))
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if at and first and get_rank() == 1:
            print(f"fault at {time.time()}", flush=True)
            if os.environ["FAULT"] == "error":
                raise ValueError("process 1 has an error")
            os.kill(os.getpid(), getattr(signal, os.environ["FAULT"]))


def write_config(cwd: Path, *bases: Path, child: str = EQUAL) -> Path:
    """Write a config that inherits others."""
    cwd.mkdir(parents=True, exist_ok=True)
    path = cwd / "child.py"
    path.write_text(f"_base_ = {[str(base) for base in bases]}\n{child}")
    return path


def launch(
    cwd: Path, config: Path, number: int, *args, options: dict | None = None, **env
) -> subprocess.Popen:
    """Start dist_train.sh with its output in the file `log`.

    Args:
        cwd: Working directory; the run's work directory is `work` in there.
        config: See :func:`write_config`.
        number: Number of processes.
        *args: Arguments of train.py.
        options: Keys that replace those of the small run.
        **env: Environment variables of the script and its processes.
    """
    line = ["bash", ROOT / "tools/dist_train.sh", config, number, "--work-dir", "work"]
    line += [*args, *as_line(small(SEG) | STILL | (options or {}))]
    ours = {"PYTHON": sys.executable, "PYTHONPATH": f"{ROOT}:{TESTS}"}
    env = ENV | ours | {"PORT": str(free_port())} | env
    with (cwd / "log").open("a") as log:
        return subprocess.Popen(
            list(map(str, line)),
            cwd=cwd,
            env=env,
            stdout=log,
            stderr=log,
            preexec_fn=restore_default_signals,
        )


def succeed(*runs: subprocess.Popen, log: Path, timeout: float = 240) -> None:
    """Wait, and fail with the output if an exit status is not 0."""
    statuses = finish(*runs, timeout=timeout)
    assert not any(statuses), f"status {statuses}\n{log.read_text()[-6000:]}"


def finish(*runs: subprocess.Popen, timeout: float = 240) -> list[int]:
    """Wait, return the exit statuses, and leave no process running."""
    try:
        return [run.wait(timeout) for run in runs]
    finally:
        for run in runs:
            run.kill()


def call_in_group(number: int, function: Callable, *args, timeout: float = 30) -> list:
    """Call a function in processes that are joined by gloo.

    Args:
        number: Number of processes.
        function: Function of a module; the processes import it.
        *args: Its arguments; picklable.
        timeout: Seconds after which the group gives up a collective.

    Returns:
        By rank, what the function returned, or the exception that it raised.
    """
    context = fork_server()
    outcomes = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_be_member,
                args=(f"file://{folder}/store", rank, number, timeout),
                kwargs=dict(call=(function, args), outcomes=outcomes),
            )
            for rank in range(number)
        ]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(120)
            found = dict(outcomes.get() for p in processes if p.exitcode == 0)
        finally:
            for process in processes:
                process.kill()
    assert len(found) == number, [process.exitcode for process in processes]
    return [found[rank] for rank in range(number)]


def _be_member(address: str, rank: int, number: int, timeout: float, call, outcomes):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}  # as torchrun does
    dist.init_process_group(
        "gloo",
        init_method=address,
        rank=rank,
        world_size=number,
        timeout=timedelta(seconds=timeout),
    )
    function, args = call
    try:
        outcome = function(*args)
    except Exception as error:
        traceback.print_exc()
        outcome = error
    outcomes.put((rank, outcome))
    dist.destroy_process_group()


def seconds_since_fault(log: str) -> float:
    """Return the seconds since :class:`Fault` logged its fault."""
    (begin,) = re.findall(r"fault at (\S+)", log)
    return round(time.time() - float(begin), 1)


def free_port() -> int:
    """Return a TCP port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
