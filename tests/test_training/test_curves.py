from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from mmengine.logging import HistoryBuffer

from ravlt.training.curves import (
    CurveHook,
    _running_mean,
)

# --------------------------------------------------------------------------- CurveHook


def test_running_mean_is_the_weighted_mean():
    values = np.random.default_rng(0).random(200)
    # Two per cent of 200 are 4 values.
    decay = 1 - 1 / 4
    expected = []
    for n in range(1, 201):
        weights = decay ** np.arange(n)[::-1]
        expected.append((weights * values[:n]).sum() / weights.sum())
    assert _running_mean(values) == pytest.approx(expected, rel=1e-12)


def test_running_mean_of_a_constant_and_of_a_short_run():
    assert _running_mean([0.3] * 500) == pytest.approx([0.3] * 500)
    assert _running_mean([1.0, 5.0, 2.0]) == [1.0, 5.0, 2.0]
    assert _running_mean([]) == []


def test_running_mean_passes_over_what_is_not_finite():
    values = [0.3, float("nan"), 0.3, float("inf"), 0.3]
    assert _running_mean(values * 50) == pytest.approx([0.3] * 250)


@pytest.fixture
def runner(tmp_path):
    return SimpleNamespace(iter=6, work_dir=str(tmp_path), rank=0)


@pytest.fixture
def drawn(monkeypatch) -> deque:
    """Figures as they are saved, newest last."""
    drawn = deque()
    save = Figure.savefig

    def spy(self, *args, **kwargs) -> None:
        drawn.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return drawn


def history(values) -> HistoryBuffer:
    return HistoryBuffer(values, [1] * len(values))


def test_curves_show_what_was_logged(runner, tmp_path, drawn):
    scalars = {
        "train/loss": history([4.0, 3.0, 2.0]),
        "train/loss_cls": history([2.0, 1.0, 1.0]),
        "train/lr": history([1e-3] * 3),
        "train/time": history([0.1] * 3),
        "val/coco/bbox_mAP": history([0.1, 0.2]),
        "val/time": history([0.1, 0.1]),
    }
    runner.message_hub = SimpleNamespace(log_scalars=scalars)
    CurveHook().after_train(runner)
    assert (tmp_path / "curves.png").stat().st_size > 1000
    losses, metrics = drawn[-1].axes
    lines = {line.get_label(): line for line in losses.lines}
    assert lines.keys() == {"loss", "loss_cls"}
    # The history ends at the sixth iteration.
    assert lines["loss"].get_xdata().tolist() == [4, 5, 6]
    assert lines["loss"].get_ydata().tolist() == [4.0, 3.0, 2.0]
    (line,) = metrics.lines
    assert line.get_label() == "coco/bbox_mAP"
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (
        [1, 2],
        [0.1, 0.2],
    )


def test_only_the_first_process_draws(runner, tmp_path, drawn):
    runner.message_hub = SimpleNamespace(log_scalars={})
    runner.rank = 1
    CurveHook().after_val_epoch(runner)
    assert not drawn
    runner.rank = 0
    CurveHook("other.png").after_val_epoch(runner)
    assert (tmp_path / "other.png").exists() and len(drawn) == 1


def test_forty_curves_differ(runner, drawn):
    scalars = {f"train/loss_{i}": history([1.0, 2.0]) for i in range(39)}
    scalars |= {f"val/metric_{i}": history([0.1, 0.2]) for i in range(12)}
    runner.message_hub = SimpleNamespace(log_scalars=scalars)
    CurveHook().after_train(runner)
    for axes, count in zip(drawn[-1].axes, (39, 12), strict=True):
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
        assert len(looks) == count
