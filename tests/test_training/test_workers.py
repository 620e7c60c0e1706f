"""Workers of data loaders end with the run, however that ends."""

import os
import shutil
import signal
import time

import pytest

from helpers.process_watch import descendants
from helpers.tool_runs import train

pytestmark = pytest.mark.integration

WORKERS = {
    "train_cfg.max_iters": 1000,
    "train_cfg.val_interval": 1000,
    "train_dataloader.num_workers": 2,
    "train_dataloader.persistent_workers": True,
}


def gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_an_error_in_a_worker(tmp_path, shapes):
    """One of 16 images is broken: some worker meets it, while others work."""
    data = shutil.copytree(shapes, tmp_path / "data")
    (first, *_) = sorted((data / "images/training").iterdir())
    run = train(tmp_path, "--data-root", data, options=WORKERS)
    run.wait_for("Iter(train) [   1/1000]")
    workers = descendants(run.pid)
    # A worker must not load the image between its check and this change: without the
    # main process all workers soon wait for work.
    os.kill(run.pid, signal.SIGSTOP)
    time.sleep(1)
    first.write_bytes(first.read_bytes()[:200])
    os.kill(run.pid, signal.SIGCONT)
    assert str(first.name) in run.error()
    assert len(workers) == 2
    assert gone(workers, 10)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_signal(tmp_path, shapes, sign):
    run = train(tmp_path, "--data-root", shapes, options=WORKERS)
    run.wait_for("Iter(train) [   2/1000]")
    workers = descendants(run.pid)
    os.kill(run.pid, sign)
    assert run.wait(60) == {signal.SIGINT: 1, signal.SIGKILL: -signal.SIGKILL}[sign]
    assert len(workers) == 2
    assert gone(workers, 15)  # a worker looks for its parent every 5 s
