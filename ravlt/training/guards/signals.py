"""SIGTERM, by which schedulers announce that a machine will be taken away."""

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
    """Ends a run after SIGTERM; no Exception, so that no handler takes it for one."""


@contextmanager
def noticing_sigterm() -> Iterator[None]:
    """Makes SIGTERM a request, see :func:`is_requested`, in place of the end.

    For programs, not for libraries: it changes the process.
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
    """Whether this process has had a SIGTERM."""
    return _received


def is_agreed(iteration: int) -> bool:
    """Return whether the processes of a run stop after an iteration.

    Each has its own SIGTERM at its own time, and one that stopped alone would leave
    the others waiting. Several processes therefore ask each other, by one number on the
    run's own process group, after every tenth iteration; a single one stops at once.

    Args:
        iteration: Number of iterations that are done. All processes call this after
            each iteration.
    """
    if get_world_size() == 1:
        return is_requested()
    if iteration % AGREEMENT_INTERVAL:
        return False
    requested = torch.tensor(int(is_requested()))
    all_reduce(requested, "max")
    return bool(requested)


def shield_workers(loader: DataLoader) -> None:
    """Keep a loader's workers alive at a SIGTERM that goes to all processes at once.

    The main process would miss them and fail. They end with it, or when it says so.
    Call this before the workers start.
    """
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)


def _start_worker(also: Callable[[int], None] | None, worker_id: int) -> None:
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
    else:
        # macOS does not tell the sender, so the first signal counts as the scheduler's.
        # The main process sends more of them at its end to a worker that hangs.
        signal.signal(signal.SIGTERM, _restore_default)
    if also is not None:
        also(worker_id)


def _restore_default(*_) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _obey(parent: int) -> None:
    """End the process at a SIGTERM of its parent, and of nobody else."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
