"""Where the time of a whole detector or segmentor goes."""

import contextlib
import functools
import time
from collections.abc import Iterator

from torch import nn

# How the hosts call the children of a model.
_ENTRIES = ("forward", "predict", "loss", "loss_and_predict", "predict_by_feat")


@contextlib.contextmanager
def timed_children(model: nn.Module) -> Iterator[dict[str, float]]:
    """Measures the seconds spent in each child of a model, CPU only.

    Args:
        model: A detector or segmentor; calls between its children count for the
            outermost one.

    Yields:
        Seconds by name of the child, filled while the context is open.
    """
    seconds: dict[str, float] = {}
    running = False

    def timed(name: str, method):
        @functools.wraps(method)
        def call(*args, **kwargs):
            nonlocal running
            if running:
                return method(*args, **kwargs)
            running = True
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
                running = False

        return call

    wrapped = []
    for name, child in model.named_children():
        for entry in _ENTRIES:
            if hasattr(child, entry):
                setattr(child, entry, timed(name, getattr(child, entry)))
                wrapped.append((child, entry))
    try:
        yield seconds
    finally:
        for child, entry in wrapped:
            delattr(child, entry)
