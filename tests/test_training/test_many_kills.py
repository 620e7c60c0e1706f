"""Kills at random moments: what each of them costs, and what is left in the end."""

import random
import re
import signal
import time
from pathlib import Path

import pytest

from helpers.run_states import assert_equal, read_state
from helpers.tool_runs import train
from ravlt.weights.checkpoint import read_checkpoint

TRIALS, INTERVAL = 30, 5
OPTIONS = {
    "train_cfg.max_iters": 400,
    "train_cfg.val_interval": 2 * INTERVAL,
    "default_hooks.checkpoint.interval": INTERVAL,
    "default_hooks.checkpoint.max_keep_ckpts": 2,
    "train_dataloader.num_workers": 2,
}


def reached(run) -> int:
    """The last iteration that a run has logged, 0 if it has none."""
    return max(map(int, re.findall(r"Iter\(train\) \[ *(\d+)/", run.out)), default=0)


def newest(work: Path) -> int:
    """The iteration of the newest checkpoint; every one must be whole."""
    paths = work.glob("*.pth")
    return max((read_checkpoint(path)["meta"]["iter"] for path in paths), default=0)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path, shapes):
    draw, lost, left = random.Random(0), [], 0
    for trial in range(TRIALS):
        parts = [tmp_path / "parts", "--data-root", shapes, "--resume"]
        run = train(*parts, options=OPTIONS)
        if trial % 5:  # the others are killed while they start
            run.wait_for(f"Iter(train) [{left + 1:3d}/400]")
        time.sleep(draw.uniform(0, 1.5))
        assert run.kill() == -signal.SIGKILL
        left = max(left, reached(run))
        saved = newest(tmp_path / "parts/work")
        lost.append(left - saved)
        left = saved
    print(f"{TRIALS} kills up to iteration {left}; iterations lost: {lost}")
    # Less than an interval, and the iterations that one checkpoint takes to write.
    assert max(lost) <= INTERVAL
    train(*parts, options=OPTIONS).succeeded()
    train(tmp_path / "whole", "--data-root", shapes, options=OPTIONS).succeeded()
    assert_equal(
        read_state(tmp_path / "parts/work/iter_400.pth"),
        read_state(tmp_path / "whole/work/iter_400.pth"),
    )
