"""Who acts on SIGTERM: a run that can save itself; its workers leave it to the run."""

import os
import signal
import subprocess
import sys
from unittest.mock import patch

import pytest
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from helpers.distributed_runs import call_in_group
from helpers.tool_runs import ENV, SEG, Run, as_line, small
from helpers.toy_runs import Toy
from ravlt.training.checkpoints.hook import SafeCheckpointHook, saves_at_sigterm
from ravlt.training.guards import signals
from ravlt.training.guards.signals import (
    is_agreed,
    noticing_sigterm,
    shield_workers,
)


class ProcessIds(Dataset):
    """Gives the process that reads it."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.parametrize("system", ["linux", "macos"])
def test_workers_survive_a_signal_from_elsewhere(monkeypatch, system):
    if system == "macos":
        monkeypatch.delattr(signal, "sigwaitinfo")
        monkeypatch.delattr(signal, "pthread_sigmask")
    loader = DataLoader(ProcessIds(), num_workers=1, prefetch_factor=1)
    shield_workers(loader)
    iterator = iter(loader)
    worker = int(next(iterator))
    # A process of its own: from its main process a worker takes the signal.
    subprocess.run(["kill", "-TERM", str(worker)], check=True)
    assert {int(ids) for ids in iterator} == {worker}
    assert worker != os.getpid()


def test_a_worker_ends_when_its_main_process_says_so():
    loader = DataLoader(ProcessIds(), num_workers=1, prefetch_factor=1)
    shield_workers(loader)
    iterator = iter(loader)
    next(iterator)
    (process,) = iterator._workers
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=20)
    assert process.exitcode == 0


def test_the_own_init_function_still_runs(tmp_path):
    def note(worker_id: int) -> None:
        (tmp_path / str(worker_id)).touch()

    loader = DataLoader(ProcessIds(), num_workers=2, worker_init_fn=note)
    shield_workers(loader)
    list(loader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


HANGING = """
import signal, time
del signal.sigwaitinfo, signal.pthread_sigmask  # as on macOS
from torch.utils.data import DataLoader, Dataset
from ravlt.training.guards.signals import shield_workers

class Hanging(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        time.sleep(1000 * (index > 0))
        return index

loader = DataLoader(Hanging(), num_workers=1, prefetch_factor=1)
shield_workers(loader)
print(next(iter(loader)))
"""


@pytest.mark.integration
def test_a_worker_that_hangs_does_not_keep_its_main_process():
    line = [sys.executable, "-c", HANGING]
    done = subprocess.run(line, env=ENV, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "tensor([0])\n", done.stderr


@HOOKS.register_module()
class ForeignCheckpointHook(CheckpointHook):
    """Somebody else's hook, which knows nothing of SIGTERM."""


class DerivedHook(SafeCheckpointHook):
    """Somebody's extension of ours."""


@pytest.mark.parametrize(
    ("checkpoint", "saves"),
    [
        (None, False),
        (dict(type="ForeignCheckpointHook"), False),
        (dict(type=ForeignCheckpointHook), False),
        (dict(type="CheckpointHook"), False),
        (dict(type="SafeCheckpointHook"), True),
        (dict(type=SafeCheckpointHook), True),
        (dict(type=DerivedHook), True),
    ],
    ids=str,
)
def test_runs_that_save_themselves_at_sigterm(tmp_path, checkpoint, saves):
    runner = Runner(
        model=Toy(),
        work_dir=str(tmp_path),
        default_hooks=dict(checkpoint=checkpoint),
        default_scope="mmengine",
        experiment_name=str(tmp_path),
        log_level="ERROR",
    )
    assert saves_at_sigterm(runner) is saves


def register_foreign_hook() -> None:
    """Import this module: its hook then has a name in the config."""


@pytest.mark.integration
@pytest.mark.parametrize(
    "hook", ["None", "dict(_delete_=True, type='ForeignCheckpointHook')"]
)
def test_sigterm_ends_a_run_that_cannot_save_itself(tmp_path, shapes, hook):
    config = tmp_path / "child.py"
    config.write_text(
        f"_base_ = {str(SEG)!r}\ndefault_hooks = dict(checkpoint={hook})\n"
    )
    options = small(SEG) | {"train_cfg.max_iters": 1000}
    del options["default_hooks.checkpoint.interval"]
    line = [config, "--work-dir", "work", "--data-root", shapes, *as_line(options)]
    run = Run("train.py", line, tmp_path, prepare=register_foreign_hook)
    run.wait_for("Iter(train) [   3/1000]")
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(60) == -signal.SIGTERM
    assert not list((tmp_path / "work").glob("*.pth"))


class Counted:
    """The all-reduce of the library, counted."""

    calls = 0

    def __call__(self, *args) -> None:
        self.calls += 1
        all_reduce(*args)


def stops(requested: dict[int, int]) -> tuple[list[int], int]:
    """Return after which of 25 iterations a process stops, and its collectives."""
    with noticing_sigterm(), patch.object(signals, "all_reduce", Counted()) as reduce:
        agreed = []
        for iteration in range(1, 26):
            if requested.get(get_rank()) == iteration:
                os.kill(os.getpid(), signal.SIGTERM)
            if is_agreed(iteration):
                agreed.append(iteration)
        return agreed, reduce.calls


def test_one_process_stops_at_once_and_asks_nobody():
    assert stops({0: 3}) == (list(range(3, 26)), 0)
    assert stops({}) == ([], 0)


@pytest.mark.integration
@pytest.mark.parametrize("requested", [{}, {1: 3}, {0: 10, 1: 14}])
def test_processes_agree_after_every_tenth_iteration(requested):
    expected = {0: [], 1: [10, 20], 2: [10, 20]}[len(requested)]
    assert call_in_group(2, stops, requested) == [(expected, 2)] * 2
