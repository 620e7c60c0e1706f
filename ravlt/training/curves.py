"""Hook that plots the losses and metrics of a run."""

import math
import os

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class CurveHook(Hook):
    """Hook that plots losses and metrics of the run so far in ``curves.png``.

    Args:
        filename: Name of the file in the work directory.
    """

    priority = "VERY_LOW"  # after everything that logs

    def __init__(self, filename: str = "curves.png") -> None:
        self.filename = filename

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Plot the curves again."""
        self._draw(runner)

    def after_train(self, runner) -> None:
        """Plot the final curves."""
        self._draw(runner)

    def _draw(self, runner) -> None:
        if runner.rank != 0:
            return
        # Imported here, because matplotlib is slow to import.
        from matplotlib import color_sequences, cycler
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4), layout="constrained")
        losses, metrics = figure.subplots(1, 2)
        # A detector has 12 metrics and DINO 39 losses, so vary colours and dashes.
        lines = cycler(linestyle=["-", "--", ":", "-."])
        lines *= cycler(color=color_sequences["tab10"])
        for axes in (losses, metrics):
            axes.set_prop_cycle(lines)
        for name, history in runner.message_hub.log_scalars.items():
            values, _ = history.data
            split, _, label = name.partition("/")
            if split == "train" and "loss" in label and len(values):
                smooth = _running_mean(values)
                first = runner.iter - len(values) + 1
                losses.plot(range(first, first + len(smooth)), smooth, label=label)
            # COCO returns -1 if there is no object to measure.
            elif (
                split == "val" and "time" not in label and max(values, default=-1) >= 0
            ):
                numbers = range(1, len(values) + 1)
                metrics.plot(numbers, values, marker=".", label=label)
        losses.set(xlabel="iteration", ylabel="loss, running mean", yscale="log")
        metrics.set(xlabel="evaluation", ylabel="metric")
        metrics.xaxis.get_major_locator().set_params(integer=True)
        for axes in (losses, metrics):
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(fontsize=7, ncols=2)
        figure.savefig(os.path.join(runner.work_dir, self.filename), dpi=110)


def _running_mean(values, share: float = 0.02) -> list[float]:
    """Return the exponential running mean over about `share` of the run.

    It is unbiased at the start. Values that are not finite, as of skipped steps, are
    ignored.
    """
    decay = 1 - 1 / max(1.0, share * len(values))
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean = decay * mean + (1 - decay) * float(value)
            weight = decay * weight + 1 - decay
        smooth.append(mean / weight if weight else math.nan)
    return smooth
