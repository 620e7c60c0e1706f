"""SIGTERM, by which schedulers announce that a machine will be taken away."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed
from torch.utils.data import DataLoader

EXIT_STATUS = 128 + signal.SIGTERM  # as shells report it: 143

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


class Agreement:
    """Lets the processes of a distributed run stop after the same iteration.

    Each has its own SIGTERM at its own time, and one that stopped alone would leave
    the others waiting. They agree on the CPU, so that no GPU waits. To be made by all.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if is_distributed() else None

    def __call__(self) -> bool:
        """Whether any has been asked to stop; to be called by all."""
        if self._group is None:
            return is_requested()
        requested = torch.tensor(int(is_requested()))
        dist.all_reduce(requested, dist.ReduceOp.MAX, self._group)
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
