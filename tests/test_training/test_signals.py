"""Workers of a data loader outlive a SIGTERM that a scheduler sends to everybody."""

import os
import signal
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader, Dataset

from helpers.tool_runs import ENV
from ravlt.training.guards.signals import shield_workers


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
