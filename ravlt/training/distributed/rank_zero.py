"""Work that the process of rank 0 does for all processes of a run."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

from mmengine.dist import broadcast_object_list, get_world_size, is_main_process

from ravlt.errors import RAVLTError

Result = TypeVar("Result")
_HEARTBEAT = 1.0  # seconds


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """Call a function in the process of rank 0 and return its result in all processes.

    The processes exchange a message every second until the function returns. The time
    limit of the process group therefore does not apply to the function.

    Args:
        function: Takes no arguments; its result is picklable.

    Raises:
        RAVLTError: In all processes, if the function raises it. Any other exception is
            raised as it is in rank 0, and as a RAVLTError in the others.
    """
    if get_world_size() == 1:
        return function()
    future = _start(function) if is_main_process() else None
    message = [None]
    while message[0] is None:
        if future is not None:
            wait([future], _HEARTBEAT)
            message = [_outcome(future) if future.done() else None]
        broadcast_object_list(message)
    error, result = message[0]
    if error is None:
        return result
    if future is not None:
        return future.result()  # raises it with its traceback
    raise RAVLTError(error)


def _start(function: Callable[[], Result]) -> Future:
    """Call a function in a thread that does not outlive the process."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def _outcome(future: Future) -> tuple:
    """Return the message of a finished call's error, or None, and its result."""
    error = future.exception()
    if error is None:
        return None, future.result()
    if isinstance(error, RAVLTError):
        return str(error), None
    return (
        f"Process 0 failed ({type(error).__name__}: {error}); see its traceback."
    ), None
