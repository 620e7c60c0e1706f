"""Runs of the command lines in tools/ and projects/, each in its own process.

Importing the hosts takes seconds. One server process imports them once, and every run
is a fork of it. Forks cannot use CUDA, so runs on a GPU import the hosts themselves.
"""

import gc
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import torch

from ravlt.weights.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
SEG = ROOT / "configs/quickstart/fpn_ravlt-mini_shapes.py"
DET = ROOT / "configs/quickstart/mask-rcnn_ravlt-mini_fpn_shapes.py"
# The smallest runs of the quickstart configs; training takes a second or two.
SMALL = {
    "model.backbone.arch": "test",
    "model.neck.in_channels": "[16,32,48,64]",
    "train_cfg.max_iters": 4,
    "train_cfg.val_interval": 2,
    "train_dataloader.batch_size": 2,
    "default_hooks.logger.interval": 1,
    "default_hooks.checkpoint.interval": 2,
    "optim_wrapper.optimizer.lr": 1e-3,
    "randomness.seed": 0,
}
TESTS = ROOT / "tests"
ENV = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
# A process that has started threads must not be forked: these only import.
_PRELOAD = [
    "mmdet.apis",
    "mmseg.apis",
    "mmcv.ops",
    "pycocotools.cocoeval",
    "matplotlib.figure",
    "torch.utils.tensorboard",
    "ravlt.training.cli",
    "ravlt.training.curves",
    "ravlt.data.check.verify",
]


@dataclass
class Run:
    """One run of a tool; it starts at once.

    Args:
        tool: Path of the script; a relative one starts in tools/.
        args: Command line.
        cwd: Working directory; the run's output goes to files in there.
        prepare: Function that the process calls before the tool; picklable.
        gpu: Whether the process sees the GPUs.
    """

    tool: str | Path
    args: list
    cwd: Path
    prepare: Callable[[], None] | None = None
    gpu: bool = False

    def __post_init__(self) -> None:
        self.cwd.mkdir(parents=True, exist_ok=True)
        index = len(list(self.cwd.glob("*.stdout")))
        self._files = [self.cwd / f"{index}.{name}" for name in ("stdout", "stderr")]
        for path in self._files:
            path.touch()
        context = multiprocessing.get_context("spawn") if self.gpu else fork_server()
        self._process = context.Process(
            target=_be_tool,
            args=(
                str(ROOT / "tools" / self.tool),
                [str(a) for a in self.args],
                str(self.cwd),
                [str(p) for p in self._files],
                self.prepare,
            ),
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def is_alive(self) -> bool:
        return self._process.exitcode is None

    def wait(self, timeout: float = 240) -> int:
        """Wait for the end and return the exit status, -n after signal n."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"{self.tool} {self.args}\n{self.out[-3000:]}{self.err}")
        return self._process.exitcode

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Wait until the output contains a text."""
        end = time.monotonic() + timeout
        while text not in self.out:
            if not self.is_alive() or time.monotonic() > end:
                raise AssertionError(f"no {text!r} in\n{self.out[-3000:]}{self.err}")
            time.sleep(0.05)

    def kill(self) -> int:
        """Send SIGKILL, as when a machine fails, and return the exit status."""
        self._process.kill()
        return self.wait()

    def interrupt(self) -> int:
        """Send SIGINT, as Ctrl-C does, and return the exit status."""
        for _ in range(5):  # Python drops the exception while a finaliser runs
            os.kill(self.pid, signal.SIGINT)
            self._process.join(10)
            if not self.is_alive():
                break
        return self.wait(60)

    def succeeded(self, timeout: float = 240) -> "Run":
        """Wait, and fail with the output if the exit status is not 0."""
        status = self.wait(timeout)
        assert status == 0, f"status {status}\n{self.out[-3000:]}\n{self.err[-3000:]}"
        return self

    def error(self) -> str:
        """Wait for exit status 1 with one error line on stderr, and return the line."""
        status = self.wait()
        written = f"\n{self.out[-3000:]}\n--- stderr\n{self.err[-5000:]}"
        assert status == 1, f"status {status}{written}"
        assert "Traceback" not in self.err and "Traceback" not in self.out, written
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert lines[-1:] and lines[-1].startswith("error: "), written
        assert sum(line.startswith("error:") for line in lines) == 1, written
        return lines[-1]


def fork_server() -> multiprocessing.context.ForkServerContext:
    """Return the context whose processes are forks of the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with patch.dict(os.environ, ENV):  # the forks inherit the server's
        forkserver.ensure_running()
    return context


def restore_default_signals() -> None:
    """Restore the actions of SIGINT, SIGTERM and SIGHUP that a terminal would give.

    A shell script's background jobs inherit SIGINT as ignored, and ``nohup`` ignores
    SIGHUP. To be called in the child process, before exec if it runs another program.
    """
    # Python installs this handler at start, but only where SIGINT is not ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _be_tool(path, args, cwd, files, prepare) -> None:
    restore_default_signals()
    gc.freeze()  # mmengine collects garbage often, and the imports made none
    for number, name in enumerate(files, 1):
        handle = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
    # The fork has the server's streams; a program has its own.
    sys.stdout = os.fdopen(1, "w", 1, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, closefd=False)
    multiprocessing.set_start_method(None, force=True)  # mmengine chooses its own
    os.chdir(cwd)
    sys.argv = [path, *args]
    sys.path.insert(0, os.path.dirname(path))  # as the interpreter does for a script
    if prepare is not None:
        prepare()
    runpy.run_path(path, run_name="__main__")


def run_readme_example(folder: Path) -> tuple[str, str]:
    """Run the Python block of a folder's README in that folder.

    Returns:
        What it prints, and what the page's text block says that it prints.
    """
    page = (folder / "README.md").read_text()
    code, expected = re.search(
        r"```python\n(.*?)```.*?```text\n(.*?)```", page, re.DOTALL
    ).groups()
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=folder, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, expected


def copy_tree(target: Path) -> Path:
    """Copy this repository to a new folder, without built and downloaded files."""
    ignore = shutil.ignore_patterns(".*", "work_dirs", "build")
    return shutil.copytree(ROOT, target, ignore=ignore)


def train(
    cwd: Path,
    *args,
    config: Path = SEG,
    child: str = "",
    options: Mapping | None = None,
    **run,
) -> Run:
    """Start a small training run in its own folder.

    Args:
        cwd: Working directory; the run's work directory is `work` in there.
        *args: Arguments of train.py.
        config: One of the quickstart configs.
        child: Text of a config that inherits `config`.
        options: Keys that replace those of the small run.
        **run: See :class:`Run`.
    """
    options = small(config) | (options or {})
    if child:
        cwd.mkdir(parents=True, exist_ok=True)
        heir = cwd / "child.py"
        heir.write_text(f"_base_ = {str(config)!r}\n{child}\n")
        config = heir
    line = [config, "--work-dir", "work", *args, *as_line(options)]
    return Run("train.py", line, cwd, **run)


def small(config: Path) -> dict:
    """Return the options of the smallest run of a quickstart config."""
    return SMALL | (
        {"model.data_preprocessor.size": "(64,64)"} if config == SEG else {}
    )


def as_line(options: Mapping) -> list[str]:
    """Return options as arguments of a tool."""
    return ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]


def read_scalars(work: Path) -> list[dict]:
    """Return the records that training runs logged, in the order of their start."""
    files = sorted(work.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.open()]


@dataclass
class Trained:
    """A finished training run, with the metric and the losses of its host."""

    config: Path
    cwd: Path
    out: str
    metric: str
    losses: set[str]

    @property
    def work(self) -> Path:
        return self.cwd / "work"

    def val(self) -> dict:
        """Return the record of the last evaluation."""
        return [line for line in read_scalars(self.work) if self.metric in line][-1]

    def test(
        self,
        data: Path,
        *args,
        checkpoint: str | Path = "work/iter_4.pth",
        options: dict | None = None,
    ) -> Run:
        """Start test.py with a new work directory."""
        work = f"test{len(list(self.cwd.glob('test*')))}"
        options = small(self.config) | (options or {})
        line = [self.config, checkpoint, "--data-root", data]
        line += ["--work-dir", work, *args, *as_line(options)]
        return Run("test.py", line, self.cwd)


def read_metrics(cwd: Path) -> dict:
    """Return the metrics that the last run of test.py wrote."""
    work = max(cwd.glob("test*"), key=os.path.getmtime)
    (path,) = work.glob("*/*.json")
    return json.loads(path.read_text())


def is_finite(path: Path) -> bool:
    """Return True if no weight of a checkpoint is NaN or Inf."""
    weights = read_checkpoint(path)["state_dict"].values()
    return all(bool(torch.isfinite(w).all()) for w in weights)
