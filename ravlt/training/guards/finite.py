"""Hooks that detect NaN and Inf in losses and weights, and spikes of the loss."""

import logging
import math
import os
import statistics
from collections import deque
from collections.abc import Mapping

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor

from ravlt.errors import RAVLTError

from .finite_steps import ADVICE, FiniteStepMixin

_MIN_SCALE = 1.0  # below it, gradients overflow even without scaling


@HOOKS.register_module()
class StopOnNonFiniteHook(Hook):
    """Stop training at the first loss that is not finite, or when the loss scale falls.

    mmengine copies every loss to the host in every iteration, so the check adds no
    synchronisation with the device. An optimizer wrapper that skips steps decides about
    losses itself; then this hook checks the loss scale and the checkpoints only.

    Args:
        check_weights: Check the weights of every checkpoint for NaN and Inf, before it
            is written and after it is loaded.
    """

    priority = "NORMAL"  # before CheckpointHook

    def __init__(self, check_weights: bool = True) -> None:
        self.check_weights = check_weights

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: Mapping | None = None
    ) -> None:
        """Raise RAVLTError if a loss term is NaN or Inf, or the loss scale fell."""
        _check_scale(runner)
        if isinstance(runner.optim_wrapper, FiniteStepMixin):
            return
        terms = {k: _number(v) for k, v in (outputs or {}).items() if "loss" in k}
        broken = {k: v for k, v in terms.items() if not math.isfinite(v)}
        if broken:
            named = ", ".join(f"{k}={v}" for k, v in broken.items())
            raise RAVLTError(
                f"The loss is not finite at iteration {runner.iter + 1} ({named}); "
                f"{_last_checkpoint(runner)}; {ADVICE} train without --amp."
            )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Raise RAVLTError if a weight contains NaN or Inf, or has another dtype."""
        if not self.check_weights:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        own = dict((*model.named_parameters(), *model.named_buffers()))
        for key, value in checkpoint.get("state_dict", checkpoint).items():
            if not isinstance(value, Tensor):
                continue  # extra state, or a file of another training program
            real = value.is_floating_point()
            fits = key not in own or own[key].is_floating_point() == real
            if not fits or (real and not torch.isfinite(value).all()):
                raise RAVLTError(
                    f"The weight {key} of '{runner.cfg.get('load_from')}' is "
                    f"{'not finite' if fits else value.dtype}; give another checkpoint."
                )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Raise RAVLTError if a weight, or its average, contains NaN or Inf."""
        if not self.check_weights:
            return
        average = checkpoint.get("ema_state_dict", {})
        for key, value in (*checkpoint["state_dict"].items(), *average.items()):
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise RAVLTError(
                    f"The weight {key} is not finite at iteration {runner.iter + 1}, "
                    f"so no checkpoint was written; {_last_checkpoint(runner)}; lower "
                    f"the learning rate or clip gradients (optim_wrapper.clip_grad)."
                )


@HOOKS.register_module()
class LossSpikeHook(Hook):
    """Log a warning when the loss is far above its running median.

    mmengine has no such hook. It copies every loss to the host in every iteration, so
    this one adds no synchronisation with the device.

    Args:
        factor: A loss above this multiple of the median is a spike.
        window: Number of iterations for the median. No spike is reported before a fifth
            of them.
    """

    def __init__(self, factor: float = 10.0, window: int = 100) -> None:
        self.factor = factor
        self.recent: deque[float] = deque(maxlen=window)
        self.spiking = False

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: Mapping | None = None
    ) -> None:
        """Log the first iteration of a spike."""
        loss = _number((outputs or {}).get("loss", math.nan))
        if not math.isfinite(loss):
            return
        known = len(self.recent) >= self.recent.maxlen // 5
        median = statistics.median(self.recent) if known else math.inf
        spiking = 0 < self.factor * median < loss
        if spiking and not self.spiking:
            print_log(
                f"The loss jumped to {loss:.4g} at iteration {runner.iter + 1}; the "
                f"median of the last {len(self.recent)} is {median:.4g}.",
                logger="current",
                level=logging.WARNING,
            )
        self.spiking = spiking
        self.recent.append(loss)


def _number(value) -> float:
    return float(torch.as_tensor(value).detach())


def _check_scale(runner) -> None:
    scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
    if scaler is not None and scaler.get_scale() < _MIN_SCALE:
        raise RAVLTError(
            f"The loss scale fell to {scaler.get_scale():.2g} by iteration "
            f"{runner.iter + 1}: gradients overflow in every step and weights no "
            f"longer change; {_last_checkpoint(runner)}; {ADVICE} use "
            f"--amp-dtype bfloat16."
        )


def _last_checkpoint(runner) -> str:
    pointer = os.path.join(runner.work_dir, "last_checkpoint")
    if not os.path.isfile(pointer):
        return "no checkpoint had been written yet"
    with open(pointer) as file:
        return f"the last good checkpoint is {file.read().strip()}"
