"""Handle SIGTERM, which schedulers send before they take a machine away."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from mmengine.dist import all_reduce, get_world_size
from torch.utils.data import DataLoader

EXIT_STATUS = 128 + signal.SIGTERM  # as shells report it: 143
AGREEMENT_INTERVAL = 10  # iterations

_received = False


class Terminated(BaseException):
    """Exception that ends a run after SIGTERM.

    It derives from BaseException, so that ``except Exception`` does not catch it.
    """


@contextmanager
def noticing_sigterm() -> Iterator[None]:
    """Record SIGTERM for :func:`is_requested` instead of ending the process.

    Only command lines use it, because it changes the signal handler of the process.
    """
    global _received

    def note(*_) -> None:
        global _received
        _received = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _received = False


def is_requested() -> bool:
    """Return whether this process has received SIGTERM."""
    return _received


def is_agreed(iteration: int) -> bool:
    """Return whether the processes of a run stop after an iteration.

    Processes receive SIGTERM at different times, and if one stopped alone, the others
    would wait for it. Several processes therefore all-reduce one number over the run's
    own process group after every tenth iteration. A single process stops at once.

    All processes call this after each iteration.

    Args:
        iteration: Number of completed iterations.
    """
    if get_world_size() == 1:
        return is_requested()
    if iteration % AGREEMENT_INTERVAL:
        return False
    requested = torch.tensor(int(is_requested()))
    all_reduce(requested, "max")
    return bool(requested)


def shield_workers(loader: DataLoader) -> None:
    """Keep a data loader's workers alive when all processes receive SIGTERM.

    Without them the main process fails before it saves a checkpoint. The workers still
    end when the main process ends or sends SIGTERM. Call this before they start.
    """
    if getattr(loader.worker_init_fn, "func", None) is _start_worker:
        return
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)


def _start_worker(init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(
            target=_exit_when_terminated_by, args=(os.getppid(),), daemon=True
        ).start()
    else:
        # macOS does not report the sender, so the worker takes the first signal for
        # the scheduler's and ignores it. If a worker hangs at the end, the main process
        # sends more.
        signal.signal(signal.SIGTERM, _restore_default)
    if init_fn is not None:
        init_fn(worker_id)


def _restore_default(*_) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_when_terminated_by(parent: int) -> None:
    """End the process when its parent sends SIGTERM; ignore that of other senders."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
