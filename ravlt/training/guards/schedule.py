"""Warn of learning-rate schedules that do not fit the length of a run."""

import logging
from collections.abc import Iterator

from mmengine.logging import print_log
from mmengine.optim.scheduler import ConstantParamScheduler
from mmengine.optim.scheduler.param_scheduler import INF

_LARGEST_SHARE = 0.1


def warn_of_long_warmup(runner) -> None:
    """Log a warning if a warm-up is longer than a tenth of the schedule.

    Args:
        runner: A runner whose schedulers and training loop are built.
    """
    for key, scheduler in _find_schedulers(runner.param_schedulers):
        unit = "epochs" if scheduler.by_epoch else "iterations"
        total = _length(runner, scheduler)
        if _warms_up(scheduler) and scheduler.end > _LARGEST_SHARE * total:
            print_log(
                f"The warm-up by {key} ({type(scheduler).__name__}) lasts "
                f"{scheduler.end} of {total} {unit}, more than a tenth of the "
                f"schedule; lower its end.",
                logger="current",
                level=logging.WARNING,
            )


def warn_of_other_length(runner) -> None:
    """Log a warning if the last schedule of the learning rate ends before the run.

    Overriding ``train_cfg.max_epochs`` alone does that: ``param_scheduler`` has the
    length of the recipe.

    Args:
        runner: A runner whose schedulers and training loop are built.
    """
    ends = [
        (scheduler.end / _length(runner, scheduler), key, scheduler)
        for key, scheduler in _find_schedulers(runner.param_schedulers)
        if scheduler.param_name == "lr" and not _warms_up(scheduler)
    ]
    if not ends:
        return
    share, key, scheduler = max(ends, key=lambda end: end[0])
    if abs(share - 1) < _LARGEST_SHARE or scheduler.end >= INF:
        return
    unit = "epochs" if scheduler.by_epoch else "iterations"
    print_log(
        f"The learning rate follows {key} ({type(scheduler).__name__}) until "
        f"{scheduler.end} {unit}, but the run has {_length(runner, scheduler)}; set "
        f"its end, and what depends on it, to the run's length.",
        logger="current",
        level=logging.WARNING,
    )


def _length(runner, scheduler) -> int:
    """Return the length of the run in the scheduler's unit."""
    return runner.max_epochs if scheduler.by_epoch else runner.max_iters


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
