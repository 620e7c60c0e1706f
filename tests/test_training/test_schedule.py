"""A warm-up that takes more than a tenth of the schedule is a warning."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    MultiStepLR,
    ReduceOnPlateauLR,
)
from torch import nn

from ravlt.training.guards import schedule


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    lines = []
    monkeypatch.setattr(schedule, "print_log", lambda line, **_: lines.append(line))
    return lines


def rate(kind=LinearLR, **arguments):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return kind(optimizer, **arguments)


def runner_of(schedulers) -> SimpleNamespace:
    return SimpleNamespace(param_schedulers=schedulers, max_iters=1000, max_epochs=10)


def test_long_warm_up(warned):
    linear = rate(start_factor=0.01, begin=0, end=500, by_epoch=False)
    schedule.warn_of_long_warmup(runner_of([linear]))
    assert warned == [
        "The warm-up by param_scheduler.0 (LinearLR) lasts 500 of 1000 iterations, "
        "more than a tenth of the schedule; lower its end."
    ]


def test_long_warm_up_of_one_of_several_optimizers(warned):
    constant = rate(ConstantLR, factor=0.1, begin=0, end=2, by_epoch=True)
    schedule.warn_of_long_warmup(runner_of({"a": [], "b": [constant]}))
    assert len(warned) == 1
    assert "by param_scheduler.b.0 (ConstantLR) lasts 2 of 10 epochs" in warned[0]


def test_a_rate_that_falls_on_plateaus_is_no_warm_up(warned):
    schedule.warn_of_long_warmup(runner_of([rate(ReduceOnPlateauLR, monitor="loss")]))
    assert not warned


def test_quadratic_warm_up(warned):
    from mmdet.engine.schedulers import QuadraticWarmupLR

    quadratic = rate(QuadraticWarmupLR, begin=0, end=5, by_epoch=True)
    schedule.warn_of_long_warmup(runner_of([quadratic]))
    assert "lasts 5 of 10 epochs" in warned[0]


@pytest.mark.parametrize(
    "scheduler",
    [
        dict(start_factor=0.01, begin=0, end=100, by_epoch=False),  # a tenth
        dict(start_factor=0.01, begin=0, end=1, by_epoch=True),
        dict(start_factor=1.0, end_factor=0.1, begin=0, end=900, by_epoch=False),
        dict(start_factor=0.1, begin=500, end=1000, by_epoch=False),  # later
    ],
)
def test_schedules_without_a_long_warm_up(warned, scheduler):
    schedule.warn_of_long_warmup(runner_of([rate(**scheduler)]))
    schedule.warn_of_long_warmup(runner_of(None))
    assert not warned


@pytest.mark.parametrize("end", [24, 500])
def test_a_schedule_of_another_length(warned, end):
    cosine = rate(CosineAnnealingLR, T_max=23, begin=1, end=end, by_epoch=True)
    warm = rate(start_factor=0.01, begin=0, end=1, by_epoch=True)
    schedule.warn_of_other_length(runner_of([warm, cosine]))
    (line,) = warned
    assert line.startswith(
        f"The learning rate follows param_scheduler.1 (CosineAnnealingLR) until {end} "
        f"epochs, but the run has 10; set its end, "
    )


@pytest.mark.parametrize("arguments", [dict(end=10), {}])
def test_a_schedule_of_the_run_or_without_end(warned, arguments):
    steps = rate(MultiStepLR, milestones=[8], by_epoch=True, **arguments)
    schedule.warn_of_other_length(runner_of([steps]))
    schedule.warn_of_other_length(runner_of([]))
    assert not warned
