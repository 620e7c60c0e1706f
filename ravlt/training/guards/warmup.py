"""Warn of a warm-up that takes too much of a short schedule."""

import logging
from collections.abc import Iterator

from mmengine.logging import print_log
from mmengine.optim.scheduler import ConstantParamScheduler

_LARGEST_SHARE = 0.1


def warn_of_long_warmup(runner) -> None:
    """Log a warning if a warm-up is longer than a tenth of the schedule.

    Args:
        runner: A runner whose schedulers and training loop are built.
    """
    for key, scheduler in _find_schedulers(runner.param_schedulers):
        unit = "epochs" if scheduler.by_epoch else "iterations"
        total = runner.max_epochs if scheduler.by_epoch else runner.max_iters
        if _warms_up(scheduler) and scheduler.end > _LARGEST_SHARE * total:
            print_log(
                f"The warm-up by {key} ({type(scheduler).__name__}) lasts "
                f"{scheduler.end} of {total} {unit}, more than a tenth of the "
                f"schedule; lower its end.",
                logger="current",
                level=logging.WARNING,
            )


def _find_schedulers(schedulers, key: str = "param_scheduler") -> Iterator[tuple]:
    """Yield each scheduler with its key; several optimizers have a dict of lists."""
    if isinstance(schedulers, dict):
        for name, some in schedulers.items():
            yield from _find_schedulers(some, f"{key}.{name}")
    else:
        yield from ((f"{key}.{i}", each) for i, each in enumerate(schedulers or ()))


def _warms_up(scheduler) -> bool:
    """Return whether a scheduler raises the learning rate from the beginning."""
    if isinstance(scheduler, ConstantParamScheduler):
        rises = scheduler.factor < 1
    else:
        start = getattr(scheduler, "start_factor", 1)
        rises = start < getattr(scheduler, "end_factor", 1)
    quadratic = type(scheduler).__name__ == "QuadraticWarmupLR"  # of mmdet
    is_rate = scheduler.param_name == "lr"
    return scheduler.begin == 0 and is_rate and (rises or quadratic)
